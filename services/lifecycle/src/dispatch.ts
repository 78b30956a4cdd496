import { State, transition } from '@medmesh/jobs';
import type { lifecycle } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import type { LifecycleDeps } from './deps.ts';

/** Moves a recorded job to PENDING and puts its work on the queue. A crash in between is mended by reconciliation. */
export async function dispatch(deps: LifecycleDeps, job: lifecycle.FineTuningJob): Promise<lifecycle.FineTuningJob> {
  const from = job.state;
  const { value } = await deps.catalog.jobs.modify(keyOf(job.name), (current) =>
    current.state === from && current.uid === job.uid ? transition(current, State.PENDING) : undefined,
  );
  if (value.state !== State.PENDING) return value;
  await deps.launcher.launch(value);
  await deps.events.publish(job.name, {
    reason: 'STATE_CHANGED',
    message: 'the job waits for a worker',
    payload: {
      $case: 'stateChange',
      value: { from, to: State.PENDING, phase: value.phase, completionReason: value.completionReason },
    },
  });
  return value;
}
