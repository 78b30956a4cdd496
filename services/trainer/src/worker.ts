import { Failure, toFailure } from '@medmesh/errors';
import { Requeue } from '@medmesh/events';
import { endJob, isTerminal, releaseLease, renewLease, takeLease, transition } from '@medmesh/jobs';
import type { trainer } from '@medmesh/proto';
import { lifecycle, type rpc } from '@medmesh/proto';
import { type Entry, keyOf } from '@medmesh/records';
import { toStatus } from '@medmesh/rpc';
import { contextFromTraceparent, withSpan } from '@medmesh/telemetry';
import type { TrainerDeps } from './deps.ts';
import { changeOwned, handBack, runAttempt, type WorkerStatus } from './run-attempt.ts';

const State = lifecycle.FineTuningJob_State;
const Category = lifecycle.FineTuningJob_ErrorCategory;
const Reason = lifecycle.FineTuningJob_CompletionReason;

/** How working on a message ended; also the exit code of a process that works on one job. */
export type WorkResult = 'done' | 'user_error' | 'handed_back' | 'fenced_out';

export const exitCodes: Record<WorkResult, number> = { done: 0, user_error: 42, handed_back: 75, fenced_out: 76 };

/** When a message for a job that somebody else works on is looked at again. */
const busyDelayMs = 5_000;

function categoryOf(failure: Failure): lifecycle.FineTuningJob_ErrorCategory {
  if (failure.code === 'resource_exhausted') return Category.CAPACITY;
  const ours = ['internal', 'unavailable', 'data_loss', 'deadline_exceeded', 'aborted'];
  return ours.includes(failure.code) ? Category.PLATFORM_ERROR : Category.USER_ERROR;
}

/** Errors that another attempt may not meet. */
const isPassing = (failure: Failure): boolean => failure.code === 'unavailable' || failure.code === 'deadline_exceeded';

/** Attempts after which a job that keeps losing its worker is given up. */
const maxAttempts = 10;

/** Makes the claim visible: RUNNING, one more attempt, the new owner's number. Undefined if there is nothing to do. */
async function claim(
  deps: TrainerDeps,
  work: trainer.TrainingWork,
  fencingToken: number,
): Promise<lifecycle.FineTuningJob | undefined> {
  const key = keyOf(work.fineTuningJob);
  const found = await deps.catalog.jobs.get(key);
  if (found === undefined || found.value.uid !== work.uid) return undefined;
  let from = found.value.state;
  const { value: job } = await deps.catalog.jobs.modify(key, (current) => {
    from = current.state;
    if (current.uid !== work.uid || isTerminal(current.state) || current.state === State.PAUSED) return undefined;
    const owned = {
      ...current,
      fencingToken,
      attempt: current.attempt + 1,
      startTime: current.startTime ?? new Date(),
    };
    // An owner that died left the job in one of these; the new owner finishes what was asked for.
    if (current.state === State.RUNNING || current.state === State.PAUSING || current.state === State.CANCELLING)
      return owned;
    const pending = current.state === State.PENDING ? owned : transition(owned, State.PENDING);
    return transition(pending, State.RUNNING);
  });
  if (isTerminal(job.state) || job.state === State.PAUSED || job.fencingToken !== fencingToken) return undefined;
  if (job.state === State.RUNNING) {
    await deps.events.publish(job.name, {
      reason: job.attempt > 1 ? 'JOB_RESTARTED' : 'STATE_CHANGED',
      message: job.attempt > 1 ? `attempt ${job.attempt} begins` : 'the job runs',
      payload: {
        $case: 'stateChange',
        value: { from, to: State.RUNNING, phase: job.phase, completionReason: job.completionReason },
      },
    });
  }
  return job;
}

/** Keeps the lease alive until stopped; tells when it was lost. */
function keepLease(deps: TrainerDeps, lease: Entry<trainer.Lease>, onLost: () => void) {
  let held = lease;
  let renewing: Promise<void> = Promise.resolve();
  const renew = async () => {
    try {
      held = await renewLease(deps.catalog.leases, held, deps.config.LEASE_TTL_MS, deps.now);
    } catch (error) {
      if (error instanceof Failure && error.reason === 'FENCED_OUT') onLost();
      else
        deps.log.warn(
          { err: error, job: lease.value.fineTuningJob },
          'the lease could not be renewed; it will be tried again',
        );
    }
  };
  const timer = setInterval(() => {
    renewing = renewing.then(renew);
  }, deps.config.LEASE_TTL_MS / 3);
  return {
    async release() {
      clearInterval(timer);
      await renewing;
      await releaseLease(deps.catalog.leases, held);
    },
  };
}

async function fail(deps: TrainerDeps, job: lifecycle.FineTuningJob, failure: Failure): Promise<void> {
  const error: rpc.Status = toStatus(failure);
  await endJob({ jobs: deps.catalog.jobs, events: deps.events }, job.name, {
    state: State.FAILED,
    completionReason: Reason.ERROR,
    fencingToken: job.fencingToken,
    changes: { error, errorCategory: categoryOf(failure) },
  });
}

/** The attempt and its ending. Throws Requeue if the work must come back. */
async function attempt(
  deps: TrainerDeps,
  job: lifecycle.FineTuningJob,
  stop: AbortSignal,
  status: (status: WorkerStatus) => void,
  fenced: AbortController,
): Promise<WorkResult> {
  const cancelled = async (): Promise<WorkResult> => {
    await endJob({ jobs: deps.catalog.jobs, events: deps.events }, job.name, {
      state: State.CANCELLED,
      completionReason: Reason.CANCELLED,
      fencingToken: job.fencingToken,
    });
    return 'done';
  };
  if (job.state === State.CANCELLING) return cancelled();
  try {
    const end = await runAttempt(deps, job, stop, fenced.signal, () => fenced.abort(), status);
    if (end === 'done') return 'done';
    await handBack(deps, job.name, job.fencingToken);
    return end === 'stopped' ? 'handed_back' : 'done';
  } catch (error) {
    if (fenced.signal.aborted) return 'fenced_out';
    const failure = toFailure(error);
    if (failure.reason === 'FENCED_OUT') return 'fenced_out';
    const now = (await deps.catalog.jobs.get(keyOf(job.name)))?.value;
    if (now === undefined) return 'done';
    if (now.state === State.CANCELLING) return cancelled();
    deps.log.warn({ err: failure, job: job.name, attempt: job.attempt }, 'the attempt failed');
    if (failure.reason === 'ENGINE_DEVICE_LOST') deps.onDeviceLost();
    if (stop.aborted || (isPassing(failure) && job.attempt < maxAttempts)) {
      await handBack(deps, job.name, job.fencingToken);
      return 'handed_back';
    }
    await fail(deps, job, failure);
    return categoryOf(failure) === Category.USER_ERROR ? 'user_error' : 'done';
  }
}

/**
 * Works on one message of the queue. `stop`: the process wants to end, so the job is checkpointed and handed back.
 * Throws Requeue when the message must be delivered again.
 */
export async function work(
  deps: TrainerDeps,
  message: trainer.TrainingWork,
  stop: AbortSignal,
  status: (status: WorkerStatus) => void,
): Promise<WorkResult> {
  const lease = await takeLease(
    deps.catalog.leases,
    message.fineTuningJob,
    deps.worker,
    deps.config.LEASE_TTL_MS,
    deps.now,
  );
  if (lease === undefined) {
    const job = (await deps.catalog.jobs.get(keyOf(message.fineTuningJob)))?.value;
    if (job === undefined || job.uid !== message.uid || isTerminal(job.state)) return 'done';
    throw new Requeue(busyDelayMs);
  }
  const fenced = new AbortController();
  const keeper = keepLease(deps, lease, () => fenced.abort());
  try {
    const job = await claim(deps, message, lease.value.fencingToken);
    if (job === undefined) return 'done';
    const parent = job.traceparent === '' ? undefined : contextFromTraceparent(job.traceparent);
    const result = await withSpan(
      'trainer.attempt',
      {
        attributes: { 'medmesh.job': job.name, 'medmesh.attempt': job.attempt },
        ...(parent === undefined ? {} : { parent }),
      },
      () => attempt(deps, job, stop, status, fenced),
    );
    if (result === 'handed_back') {
      const now = await changeOwned(deps, job.name, job.fencingToken, (current) => current);
      if (now.state === State.PENDING) throw new Requeue(0);
    }
    return result;
  } finally {
    await keeper.release();
  }
}
