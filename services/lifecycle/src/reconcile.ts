import { setTimeout as sleep } from 'node:timers/promises';
import { endJob, isTerminal, leaseExpired, publishTerminalEvent, State, transition } from '@medmesh/jobs';
import { lifecycle } from '@medmesh/proto';
import { eachEntry, keyOf } from '@medmesh/records';
import type { LifecycleDeps } from './deps.ts';
import { settleAdapter } from './settle-adapter.ts';

export type ReconcileDeps = LifecycleDeps & { pausedTtlMs: number };

/** How long a job may stand in a state that a process passes through at once before it is looked at. */
const graceMs = 10_000;

async function reconcileJob(deps: ReconcileDeps, job: lifecycle.FineTuningJob, announced: Set<string>): Promise<void> {
  const ageMs = deps.now() - (job.updateTime?.getTime() ?? 0);
  if (isTerminal(job.state)) {
    if (announced.has(job.uid)) return;
    await publishTerminalEvent(deps.events, job);
    announced.add(job.uid);
    return;
  }
  if (ageMs < graceMs) return;
  const lease = (await deps.catalog.leases.get(keyOf(job.name)))?.value;
  const orphaned = leaseExpired(lease, deps.now());
  const end = { jobs: deps.catalog.jobs, events: deps.events };
  switch (job.state) {
    case State.QUEUED:
    case State.VALIDATING:
    case State.PENDING: {
      // The creator died before it put the work on the queue, or the message was lost with its queue: put it there (again).
      const entry = await deps.catalog.jobs.modify(keyOf(job.name), (current) => {
        if (current.state === State.PENDING) return { ...current, updateTime: new Date() };
        return current.state === job.state ? transition(current, State.PENDING) : undefined;
      });
      if (orphaned && entry.value.state === State.PENDING) await deps.launcher.launch(entry.value);
      return;
    }
    case State.RUNNING:
    case State.PAUSING: {
      if (!orphaned) return;
      const back = job.state === State.RUNNING ? State.PENDING : State.PAUSED;
      const entry = await deps.catalog.jobs.modify(keyOf(job.name), (current) =>
        current.state === job.state && current.fencingToken === job.fencingToken
          ? transition(current, back, { phase: lifecycle.FineTuningJob_Phase.UNSPECIFIED })
          : undefined,
      );
      if (entry.value.state !== back) return;
      deps.log.warn({ job: job.name, attempt: job.attempt }, 'a job lost its worker');
      await deps.events.publish(job.name, {
        reason: 'JOB_RESTARTED',
        level: lifecycle.JobEvent_Level.WARNING,
        message: 'the worker was lost; the job goes on from its newest checkpoint',
      });
      if (back === State.PENDING) await deps.launcher.launch(entry.value);
      return;
    }
    case State.CANCELLING:
      if (orphaned)
        await endJob(end, job.name, {
          state: State.CANCELLED,
          completionReason: lifecycle.FineTuningJob_CompletionReason.CANCELLED,
        });
      return;
    case State.PAUSED:
      if (ageMs > deps.pausedTtlMs) {
        await endJob(end, job.name, {
          state: State.EXPIRED,
          completionReason: lifecycle.FineTuningJob_CompletionReason.CANCELLED,
        });
      }
      return;
    default:
  }
}

/**
 * Looks at every job and adapter at intervals and finishes what a dead process left half done. Safe to run in several processes at once: every
 * change is a compare-and-set, every message has an id.
 */
export async function reconcileForever(deps: ReconcileDeps, intervalMs: number, signal: AbortSignal): Promise<void> {
  const announced = new Set<string>();
  while (!signal.aborted) {
    try {
      for await (const { value: job } of eachEntry(deps.catalog.jobs)) await reconcileJob(deps, job, announced);
      for await (const entry of eachEntry(deps.catalog.adapters)) await settleAdapter(deps, entry);
    } catch (error) {
      if (signal.aborted) return;
      deps.log.warn({ err: error }, 'reconciliation failed; it will be tried again');
    }
    await sleep(intervalMs, undefined, { signal }).catch(() => undefined);
  }
}
