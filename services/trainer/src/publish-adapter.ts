import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { adapterDescriptionFile, artifactFiles, names, serializeAdapterDescription } from '@medmesh/catalog';
import { engineVersion, type Trainer } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { subjects } from '@medmesh/events';
import { endJob } from '@medmesh/jobs';
import { collectFolder } from '@medmesh/objects';
import { lifecycle } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { withSpan } from '@medmesh/telemetry';
import type { TrainerDeps } from './deps.ts';
import type { JobInputs } from './job-inputs.ts';
import { computeProbes, probeTokens } from './parity-probes.ts';

export type PublishFacts = {
  job: lifecycle.FineTuningJob;
  spec: lifecycle.ResolvedSpec;
  fencingToken: number;
  device: string;
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
    const probes = await withSpan('trainer.verify_export', {}, async () => {
      const adapter = await inputs.model.loadAdapter(folder);
      try {
        const sequences = await probeTokens(inputs.modelDir, inputs.dataset.template, inputs.model.info.vocabSize);
        return await computeProbes(inputs.model, adapter, trainer, sequences, signal);
      } finally {
        await adapter.close();
      }
    });
    const description = serializeAdapterDescription({
      format: 1,
      base: { name: facts.spec.baseModel, digest: facts.spec.baseDigest, quantization: inputs.model.info.quantization },
      tokenizerDigest: facts.spec.tokenizerDigest,
      templateDigest: facts.spec.templateDigest,
      template: inputs.dataset.template,
      datasetDigests: facts.spec.datasetDigests,
      resolvedSpecDigest: facts.job.resolvedSpecDigest,
      job: facts.job.name,
      seed: facts.spec.seed,
      engine: {
        version: engineVersion,
        device: facts.device,
        compute: facts.spec.quantization?.computeDtype === 'f32' ? 'f32' : 'bf16',
      },
      probes,
    });
    await writeFile(join(folder, adapterDescriptionFile), description);
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
    const { job, spec } = facts;
    const { project } = names.job.parse(job.name);
    const lora = spec.adapterSpec?.kind?.$case === 'lora' ? spec.adapterSpec.kind.value : undefined;
    const now = new Date();
    const adapter: lifecycle.Adapter = {
      name: names.adapter.format({ project, adapter: job.publish?.adapterId || names.job.parse(job.name).job }),
      displayName: job.displayName,
      labels: job.labels,
      state: lifecycle.Adapter_State.UNSPECIFIED,
      digest,
      files: artifactFiles(manifest),
      baseModel: spec.baseModel,
      baseDigest: spec.baseDigest,
      fineTuningJob: job.name,
      datasetVersions: job.trainDatasets.map((mixture) => mixture.datasetVersion),
      template: (await deps.catalog.datasetVersions.get(keyOf(job.trainDatasets[0]?.datasetVersion ?? '')))?.value.spec
        ?.template,
      templateDigest: spec.templateDigest,
      tokenizerDigest: spec.tokenizerDigest,
      rank: lora?.rank ?? 0,
      finalLoss: facts.progress.loss,
      validationLoss: facts.progress.validationLoss,
      createTime: now,
      updateTime: now,
      etag: '',
      traceparent: job.traceparent,
    };
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
