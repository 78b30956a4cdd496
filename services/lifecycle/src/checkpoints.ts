import { names } from '@medmesh/catalog';
import { Failure, notFound } from '@medmesh/errors';
import { isTerminal, State, stateName } from '@medmesh/jobs';
import type { lifecycle, protobuf } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { withEtag } from './create-job.ts';
import type { LifecycleDeps } from './deps.ts';
import { jobEntry } from './read-jobs.ts';

export async function getCheckpoint(
  deps: LifecycleDeps,
  request: lifecycle.GetCheckpointRequest,
): Promise<lifecycle.Checkpoint> {
  names.checkpoint.parse(request.name);
  const entry = await deps.catalog.checkpoints.get(keyOf(request.name));
  if (entry === undefined) throw notFound(request.name);
  return entry.value;
}

export async function listCheckpoints(
  deps: LifecycleDeps,
  request: lifecycle.ListCheckpointsRequest,
): Promise<lifecycle.ListCheckpointsResponse> {
  await jobEntry(deps, request.parent);
  const page = await deps.catalog.checkpoints.list(keyOf(`${request.parent}/checkpoints/`), {
    pageSize: request.pageSize,
    pageToken: request.pageToken,
  });
  return { checkpoints: page.entries.map((entry) => entry.value), nextPageToken: page.nextPageToken };
}

/** Deletes a checkpoint; only of a job that no longer needs it. */
export async function deleteCheckpoint(
  deps: LifecycleDeps,
  request: lifecycle.DeleteCheckpointRequest,
): Promise<protobuf.Empty> {
  const { project, job } = names.checkpoint.parse(request.name);
  const owner = await deps.catalog.jobs.get(keyOf(names.job.format({ project, job })));
  if (owner !== undefined && !isTerminal(owner.value.state)) {
    throw new Failure(
      'failed_precondition',
      `${owner.value.name} is ${stateName(owner.value.state)} and may still need its checkpoints`,
      {
        reason: 'STATE_TRANSITION_NOT_ALLOWED',
      },
    );
  }
  const entry = await deps.catalog.checkpoints.get(keyOf(request.name));
  if (entry === undefined) throw notFound(request.name);
  await deps.catalog.checkpoints.delete(entry.key, entry.revision);
  return {};
}

/** Asks the worker of a running job for a checkpoint now; it is committed some steps later and announced by an event. */
export async function saveCheckpoint(
  deps: LifecycleDeps,
  request: lifecycle.SaveCheckpointRequest,
): Promise<lifecycle.FineTuningJob> {
  const { value: job } = await jobEntry(deps, request.name);
  if (job.state !== State.RUNNING) {
    throw new Failure(
      'failed_precondition',
      `${job.name} is ${stateName(job.state)}; only a RUNNING job can save a checkpoint`,
      {
        reason: 'STATE_TRANSITION_NOT_ALLOWED',
      },
    );
  }
  const entry = await deps.catalog.jobs.modify(keyOf(job.name), (current) => ({
    ...current,
    conditions: [
      ...current.conditions.filter((condition) => condition.type !== 'CHECKPOINT_REQUESTED'),
      { type: 'CHECKPOINT_REQUESTED', message: 'a checkpoint was asked for', time: new Date() },
    ],
  }));
  return withEtag(entry.value, entry.revision);
}
