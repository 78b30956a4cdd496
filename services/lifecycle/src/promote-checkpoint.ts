import { adapterDescriptionFile, artifactFiles, names } from '@medmesh/catalog';
import { Failure, invalidField } from '@medmesh/errors';
import { subjects } from '@medmesh/events';
import { adapterOfJob } from '@medmesh/jobs';
import { lifecycle } from '@medmesh/proto';
import { etagOf, keyOf } from '@medmesh/records';
import { getCheckpoint } from './checkpoints.ts';
import type { LifecycleDeps } from './deps.ts';
import { jobEntry } from './read-jobs.ts';

/** What a checkpoint has that an adapter is made of; the rest is the optimizer's. */
const adapterFiles: readonly string[] = ['adapter_config.json', 'adapter_model.safetensors', adapterDescriptionFile];

/** The checkpoint's files that make an adapter. Failure `failed_precondition` if it has no parity probes to be served by. */
function filesOf(checkpoint: lifecycle.Checkpoint) {
  const files = checkpoint.files.filter((file) => adapterFiles.includes(file.path));
  if (files.length < adapterFiles.length) {
    throw new Failure(
      'failed_precondition',
      `${checkpoint.name} holds no adapter with parity probes; promote another checkpoint`,
      { reason: 'CHECKPOINT_NOT_PROMOTABLE' },
    );
  }
  return files;
}

/** Makes an adapter of a checkpoint, whatever became of its job: nothing is copied, the adapter names blobs the checkpoint has. */
export async function promoteCheckpoint(
  deps: LifecycleDeps,
  request: lifecycle.PromoteCheckpointRequest,
): Promise<lifecycle.Adapter> {
  const checkpoint = await getCheckpoint(deps, { name: request.name });
  const { project, job: jobId } = names.checkpoint.parse(request.name);
  const { value: job } = await jobEntry(deps, names.job.format({ project, job: jobId }));
  const baseDigest = job.resolvedSpec?.baseDigest ?? '';
  if (request.adapterId === '') throw invalidField('adapter_id', 'is missing');
  const name = names.adapter.format({ project, adapter: request.adapterId });
  names.adapter.parse(name);
  const manifest = { kind: 'adapter' as const, files: filesOf(checkpoint), metadata: { 'medmesh.base': baseDigest } };
  const adapter = adapterOfJob(job, {
    adapterId: request.adapterId,
    state: lifecycle.Adapter_State.ACTIVE,
    digest: await deps.store.putManifest(manifest),
    files: artifactFiles(manifest),
    template: (await deps.catalog.datasetVersions.get(keyOf(job.trainDatasets[0]?.datasetVersion ?? '')))?.value.spec
      ?.template,
    loss: checkpoint.loss,
    validationLoss: checkpoint.validationLoss,
  });
  // One record, created at once in its final state, is the commit point.
  const entry = await deps.catalog.adapters.create(keyOf(name), adapter).catch((error: unknown) => {
    if (!(error instanceof Failure && error.code === 'already_exists')) throw error;
    throw new Failure('already_exists', `${name} exists; choose another adapter_id`, { reason: 'ADAPTER_EXISTS' });
  });
  await deps.publisher.publish(
    subjects.adapterPublished(project, request.adapterId),
    lifecycle.AdapterPublished.encode({ adapter: name, digest: adapter.digest }).finish(),
    { messageId: `${job.uid}-adapter-${request.adapterId}`, type: 'medmesh.lifecycle.v1.AdapterPublished' },
  );
  return { ...entry.value, etag: etagOf(entry.revision) };
}
