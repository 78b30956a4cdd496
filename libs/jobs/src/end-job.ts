import { lifecycle } from '@medmesh/proto';
import { type Bucket, keyOf } from '@medmesh/records';
import type { JobEvents } from './events.ts';
import { isTerminal, type State, stateName, transition } from './state.ts';

/** How a job ends. */
export type EndJob = {
  state: State;
  completionReason: lifecycle.FineTuningJob_CompletionReason;
  /** Set by a worker: a newer owner's number refuses the write. */
  fencingToken?: number;
  changes?: Partial<lifecycle.FineTuningJob>;
};

/**
 * Brings a job to its one terminal state: the record's compare-and-set decides, the event follows. Returns the record as it is afterwards, which
 * is another terminal state if somebody else was first. A crash between the two is mended by lifecycle's reconciliation.
 */
export async function endJob(
  deps: { jobs: Bucket<lifecycle.FineTuningJob>; events: JobEvents },
  name: string,
  end: EndJob,
): Promise<lifecycle.FineTuningJob> {
  const entry = await deps.jobs.modify(keyOf(name), (job) => {
    if (isTerminal(job.state)) return undefined;
    if (end.fencingToken !== undefined && job.fencingToken > end.fencingToken) return undefined;
    return transition(job, end.state, {
      ...end.changes,
      phase: lifecycle.FineTuningJob_Phase.UNSPECIFIED,
      completionReason: end.completionReason,
      endTime: new Date(),
    });
  });
  if (isTerminal(entry.value.state)) await publishTerminalEvent(deps.events, entry.value);
  return entry.value;
}

/** Publishes the terminal event of a job in a terminal state, unless it is there already. */
export async function publishTerminalEvent(events: JobEvents, job: lifecycle.FineTuningJob): Promise<boolean> {
  const failed = job.state === lifecycle.FineTuningJob_State.FAILED;
  return events.publishTerminal(job.name, {
    eventId: `${job.uid}-terminal`,
    reason: `JOB_${stateName(job.state)}`,
    level: failed ? lifecycle.JobEvent_Level.ERROR : lifecycle.JobEvent_Level.INFO,
    message: failed ? (job.error?.message ?? 'the job failed') : `the job is ${stateName(job.state)}`,
    payload: {
      $case: 'stateChange',
      value: {
        from: lifecycle.FineTuningJob_State.UNSPECIFIED,
        to: job.state,
        phase: lifecycle.FineTuningJob_Phase.UNSPECIFIED,
        completionReason: job.completionReason,
      },
    },
  });
}
