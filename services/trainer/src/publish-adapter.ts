import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { artifactFiles, names } from '@medmesh/catalog';
import type { Trainer } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { subjects } from '@medmesh/events';
import { adapterOfJob, endJob } from '@medmesh/jobs';
import { collectFolder } from '@medmesh/objects';
import { lifecycle } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { withSpan } from '@medmesh/telemetry';
import type { TrainerDeps } from './deps.ts';
import { describeAdapter } from './describe-adapter.ts';
import type { JobInputs } from './job-inputs.ts';

export type PublishFacts = {
  job: lifecycle.FineTuningJob;
  spec: lifecycle.ResolvedSpec;
  fencingToken: number;
  progress: lifecycle.Progress;
  completionReason: lifecycle.FineTuningJob_CompletionReason;
  bestCheckpoint: string;
};

/** Writes the PEFT folder and medmesh.json, and stores them. */
async function storeAdapter(
  deps: TrainerDeps,
  trainer: Trainer,
  inputs: JobInputs,
  facts: PublishFacts,
  signal: AbortSignal,
) {
  const dir = await mkdtemp(join(tmpdir(), 'medmesh-adapter-'));
  try {
    const folder = join(dir, 'adapter');
    await trainer.saveAdapter(folder, { baseModelName: facts.spec.baseModel });
    await describeAdapter(trainer, inputs, facts.job, folder, signal);
    return await collectFolder(deps.store, folder, 'adapter', { 'medmesh.base': facts.spec.baseDigest });
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

/** The pending record: invisible until the job has succeeded. One left by an earlier attempt of the same job is replaced. */
async function writePending(deps: TrainerDeps, adapter: lifecycle.Adapter): Promise<void> {
  const key = keyOf(adapter.name);
  const existing = await deps.catalog.adapters.get(key);
  if (existing === undefined) {
    await deps.catalog.adapters.create(key, adapter);
    return;
  }
  if (
    existing.value.state !== lifecycle.Adapter_State.UNSPECIFIED ||
    existing.value.fineTuningJob !== adapter.fineTuningJob
  ) {
    throw new Failure('already_exists', `${adapter.name} exists; choose another publish.adapter_id`, {
      reason: 'ADAPTER_EXISTS',
    });
  }
  await deps.catalog.adapters.update(key, adapter, existing.revision);
}

/**
 * Makes the adapter exist. In order: blobs, pending record, the job's compare-and-set to SUCCEEDED (the commit point), ACTIVE, event. A crash
 * before the commit point leaves nothing visible; one after it is finished by lifecycle's reconciliation.
 */
export async function publishAdapter(
  deps: TrainerDeps,
  trainer: Trainer,
  inputs: JobInputs,
  facts: PublishFacts,
  signal: AbortSignal,
): Promise<lifecycle.FineTuningJob> {
  return withSpan('trainer.publish', {}, async () => {
    const { manifest, digest } = await storeAdapter(deps, trainer, inputs, facts, signal);
    const { job } = facts;
    const { project } = names.job.parse(job.name);
    const adapter = adapterOfJob(job, {
      adapterId: job.publish?.adapterId || names.job.parse(job.name).job,
      state: lifecycle.Adapter_State.UNSPECIFIED,
      digest,
      files: artifactFiles(manifest),
      template: (await deps.catalog.datasetVersions.get(keyOf(job.trainDatasets[0]?.datasetVersion ?? '')))?.value.spec
        ?.template,
      loss: facts.progress.loss,
      validationLoss: facts.progress.validationLoss,
    });
    await writePending(deps, adapter);
    signal.throwIfAborted();
    const ended = await endJob({ jobs: deps.catalog.jobs, events: deps.events }, job.name, {
      state: lifecycle.FineTuningJob_State.SUCCEEDED,
      completionReason: facts.completionReason,
      fencingToken: facts.fencingToken,
      changes: { adapter: adapter.name, progress: facts.progress, bestCheckpoint: facts.bestCheckpoint },
    });
    if (ended.state !== lifecycle.FineTuningJob_State.SUCCEEDED || ended.adapter !== adapter.name) return ended;
    await deps.catalog.adapters.modify(keyOf(adapter.name), (current) =>
      current.state === lifecycle.Adapter_State.UNSPECIFIED
        ? { ...current, state: lifecycle.Adapter_State.ACTIVE }
        : undefined,
    );
    await deps.publisher.publish(
      subjects.adapterPublished(project, names.adapter.parse(adapter.name).adapter),
      lifecycle.AdapterPublished.encode({ adapter: adapter.name, digest }).finish(),
      { messageId: `${job.uid}-adapter`, type: 'medmesh.lifecycle.v1.AdapterPublished' },
    );
    return ended;
  });
}
