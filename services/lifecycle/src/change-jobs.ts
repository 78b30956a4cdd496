import { Failure, invalidField } from '@medmesh/errors';
import { endJob, isTerminal, leaseExpired, State, stateName, transition } from '@medmesh/jobs';
import { lifecycle, type protobuf } from '@medmesh/proto';
import { checkEtag, eachEntry, keyOf } from '@medmesh/records';
import { withEtag } from './create-job.ts';
import type { LifecycleDeps } from './deps.ts';
import { dispatch } from './dispatch.ts';
import { limits } from './limits.ts';
import { jobEntry } from './read-jobs.ts';

type Job = lifecycle.FineTuningJob;

/** Changes a job by the state machine; the event follows. */
async function move(
  deps: LifecycleDeps,
  name: string,
  etag: string,
  message: string,
  decide: (job: Job) => State,
): Promise<Job> {
  const before = await jobEntry(deps, name);
  if (etag !== '') checkEtag(etag, before.revision);
  let from = before.value.state;
  const entry = await deps.catalog.jobs.modify(keyOf(name), (job) => {
    from = job.state;
    return transition(job, decide(job));
  });
  await deps.events.publish(name, {
    reason: 'STATE_CHANGED',
    message,
    payload: {
      $case: 'stateChange',
      value: { from, to: entry.value.state, phase: entry.value.phase, completionReason: entry.value.completionReason },
    },
  });
  return withEtag(entry.value, entry.revision);
}

/**
 * Asks a job to stop. One that no worker holds is CANCELLED at once; a running one becomes CANCELLING and its worker stops at the next step.
 * Cancelling a job that is being cancelled, or was, changes nothing.
 */
export async function cancelFineTuningJob(
  deps: LifecycleDeps,
  request: lifecycle.CancelFineTuningJobRequest,
): Promise<Job> {
  const { value: job, revision } = await jobEntry(deps, request.name);
  if (request.etag !== '') checkEtag(request.etag, revision);
  if (job.state === State.CANCELLED || job.state === State.CANCELLING) return withEtag(job, revision);
  const lease = await deps.catalog.leases.get(keyOf(job.name));
  const held = !leaseExpired(lease?.value, deps.now());
  if (
    job.state === State.RUNNING ||
    job.state === State.PAUSING ||
    (held && !isTerminal(job.state) && job.state !== State.PENDING)
  ) {
    return move(deps, job.name, request.etag, 'the job is being cancelled', () => State.CANCELLING);
  }
  if (isTerminal(job.state)) {
    throw new Failure('failed_precondition', `${job.name} is ${stateName(job.state)}; it can no longer be cancelled`, {
      reason: 'STATE_TRANSITION_NOT_ALLOWED',
      metadata: { from: stateName(job.state), to: 'CANCELLED' },
    });
  }
  const ended = await endJob({ jobs: deps.catalog.jobs, events: deps.events }, job.name, {
    state: State.CANCELLED,
    completionReason: lifecycle.FineTuningJob_CompletionReason.CANCELLED,
  });
  return getEtagged(deps, ended);
}

async function getEtagged(deps: LifecycleDeps, job: Job): Promise<Job> {
  const entry = await deps.catalog.jobs.get(keyOf(job.name));
  return entry === undefined ? job : withEtag(entry.value, entry.revision);
}

/** Asks a running job to write a checkpoint and free its worker; a waiting one is PAUSED at once. */
export const pauseFineTuningJob = (deps: LifecycleDeps, request: lifecycle.PauseFineTuningJobRequest): Promise<Job> =>
  move(deps, request.name, request.etag, 'the job is being paused', (job) =>
    job.state === State.PENDING ? State.PAUSED : State.PAUSING,
  );

/** Puts a paused job back in the queue; it goes on from its newest checkpoint. */
export async function resumeFineTuningJob(
  deps: LifecycleDeps,
  request: lifecycle.ResumeFineTuningJobRequest,
): Promise<Job> {
  const { value: job, revision } = await jobEntry(deps, request.name);
  if (request.etag !== '') checkEtag(request.etag, revision);
  if (job.state !== State.PAUSED) {
    throw new Failure(
      'failed_precondition',
      `${job.name} is ${stateName(job.state)}; only a PAUSED job can be resumed`,
      {
        reason: 'STATE_TRANSITION_NOT_ALLOWED',
        metadata: { from: stateName(job.state), to: 'PENDING' },
      },
    );
  }
  return getEtagged(deps, await dispatch(deps, job));
}

/** Changes display name and labels. */
export async function updateFineTuningJob(
  deps: LifecycleDeps,
  request: lifecycle.UpdateFineTuningJobRequest,
): Promise<Job> {
  const wanted = request.fineTuningJob;
  if (wanted === undefined) throw invalidField('fine_tuning_job', 'is missing');
  if (Object.keys(wanted.labels).length > limits.maxLabels)
    throw invalidField('fine_tuning_job.labels', `has more than ${limits.maxLabels} entries`);
  if (wanted.displayName.length > 63)
    throw invalidField('fine_tuning_job.display_name', `has ${wanted.displayName.length} characters; at most 63`);
  const before = await jobEntry(deps, wanted.name);
  if (wanted.etag !== '') checkEtag(wanted.etag, before.revision);
  const entry = await deps.catalog.jobs.modify(keyOf(wanted.name), (job) => ({
    ...job,
    displayName: wanted.displayName,
    labels: wanted.labels,
    updateTime: new Date(),
  }));
  return withEtag(entry.value, entry.revision);
}

/** Deletes a job in a terminal state with its checkpoints. */
export async function deleteFineTuningJob(
  deps: LifecycleDeps,
  request: lifecycle.DeleteFineTuningJobRequest,
): Promise<protobuf.Empty> {
  const { value: job, revision } = await jobEntry(deps, request.name);
  if (request.etag !== '') checkEtag(request.etag, revision);
  if (!isTerminal(job.state)) {
    throw new Failure('failed_precondition', `${job.name} is ${stateName(job.state)}; cancel it first`, {
      reason: 'STATE_TRANSITION_NOT_ALLOWED',
    });
  }
  for await (const checkpoint of eachEntry(deps.catalog.checkpoints, keyOf(`${job.name}/checkpoints/`))) {
    await deps.catalog.checkpoints.delete(checkpoint.key);
  }
  await deps.catalog.leases.delete(keyOf(job.name));
  await deps.catalog.jobs.delete(keyOf(job.name), revision);
  return {};
}
