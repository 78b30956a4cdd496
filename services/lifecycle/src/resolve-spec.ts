import { type Catalog, parseDatasetMetadata } from '@medmesh/catalog';
import { Failure } from '@medmesh/errors';
import { specDigest } from '@medmesh/jobs';
import type { ObjectStore } from '@medmesh/objects';
import { dataset, lifecycle, model } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { checkSpec } from './check-spec.ts';
import { estimate } from './estimate.ts';
import { type FilledSpec, fillDefaults } from './fill-defaults.ts';

export type ResolveDeps = { catalog: Catalog; store: ObjectStore };

/** A job's spec with every default written out and every reference resolved to a digest. */
export type Resolved = {
  spec: lifecycle.ResolvedSpec;
  digest: string;
  dataStats: dataset.DataStats | undefined;
  estimate: lifecycle.FineTuningEstimate;
};

const reference = (field: string, description: string, reason = 'FIELD_INVALID') =>
  new Failure('invalid_argument', `${field}: ${description}`, {
    reason,
    fields: [{ field: `fine_tuning_job.${field}`, description }],
  });

async function readyModel(catalog: Catalog, name: string, field: string): Promise<model.Model> {
  const found = (await catalog.models.get(keyOf(name)))?.value;
  if (found === undefined) throw reference(field, `there is no model ${name}; import it first`, 'RESOURCE_NOT_FOUND');
  if (found.state !== model.Model_State.READY) throw reference(field, `model ${name} is not ready`, 'MODEL_NOT_READY');
  return found;
}

async function configOf(store: ObjectStore, base: model.Model): Promise<string> {
  const file = base.files.find(({ path }) => path === 'config.json');
  if (file === undefined)
    throw new Failure('data_loss', `${base.name} has no config.json; import it again`, { reason: 'ARTIFACT_CORRUPT' });
  return Buffer.concat(await Array.fromAsync(store.readBlob(file.digest))).toString();
}

async function readyVersion(catalog: Catalog, name: string, field: string): Promise<dataset.DatasetVersion> {
  const found = (await catalog.datasetVersions.get(keyOf(name)))?.value;
  if (found === undefined)
    throw reference(field, `there is no dataset version ${name}; build it first`, 'RESOURCE_NOT_FOUND');
  if (found.state !== dataset.DatasetVersion_State.READY)
    throw reference(field, `dataset version ${name} is not ready`, 'DATASET_NOT_READY');
  return found;
}

/** The base, and the adapter or checkpoint that training starts from. */
async function resolveSource(catalog: Catalog, job: lifecycle.FineTuningJob) {
  switch (job.source?.$case) {
    case 'baseModel':
      return { base: await readyModel(catalog, job.source.value, 'base_model'), adapter: '', checkpoint: '' };
    case 'baseAdapter': {
      const adapter = (await catalog.adapters.get(keyOf(job.source.value)))?.value;
      if (adapter === undefined || adapter.state !== lifecycle.Adapter_State.ACTIVE) {
        throw reference('base_adapter', `there is no active adapter ${job.source.value}`, 'RESOURCE_NOT_FOUND');
      }
      return {
        base: await readyModel(catalog, adapter.baseModel, 'base_adapter'),
        adapter: adapter.digest,
        checkpoint: '',
      };
    }
    case 'baseCheckpoint': {
      const checkpoint = (await catalog.checkpoints.get(keyOf(job.source.value)))?.value;
      if (checkpoint === undefined)
        throw reference('base_checkpoint', `there is no checkpoint ${job.source.value}`, 'RESOURCE_NOT_FOUND');
      const owner = (await catalog.jobs.get(keyOf(checkpoint.name.replace(/\/checkpoints\/[^/]+$/, ''))))?.value;
      if (owner?.resolvedSpec === undefined)
        throw reference('base_checkpoint', 'the checkpoint has lost its job', 'RESOURCE_NOT_FOUND');
      return {
        base: await readyModel(catalog, owner.resolvedSpec.baseModel, 'base_checkpoint'),
        adapter: '',
        checkpoint: checkpoint.digest,
      };
    }
    default:
      throw reference('base_model', 'name the model to fine-tune, e.g. projects/default/models/qwen2.5-7b');
  }
}

/** Optimizer steps: as asked for, or as many as the passes over the rows need. */
function stepCount(schedule: FilledSpec['schedule'], batch: FilledSpec['batch'], rows: number, tokens: number): number {
  if (schedule.steps > 0) return schedule.steps;
  const microBatches =
    batch.packedTokens > 0 ? Math.ceil(tokens / batch.packedTokens) : Math.ceil(rows / batch.microBatchRows);
  return Math.max(1, Math.ceil((schedule.epochs * microBatches) / batch.gradientAccumulation));
}

/** The schedule over a known number of steps. The default warm-up is as short as the run; one that was asked for must fit. */
function resolveSchedule(
  asked: lifecycle.ScheduleSpec | undefined,
  filled: FilledSpec,
  steps: number,
): lifecycle.ScheduleSpec {
  const warmupSteps = filled.schedule.warmupSteps ?? 0;
  if (asked?.warmupSteps !== undefined && warmupSteps > steps) {
    throw reference('schedule.warmup_steps', `is ${warmupSteps}; use at most the ${steps} steps of the run`);
  }
  return { ...filled.schedule, warmupSteps: Math.min(warmupSteps, steps), steps, epochs: 0 };
}

/**
 * Checks a job against the proto's rules, the model and the data, and writes everything out.
 * Failure `invalid_argument` with a field path for what the user can mend.
 */
export async function resolveSpec(deps: ResolveDeps, job: lifecycle.FineTuningJob): Promise<Resolved> {
  checkSpec(job);
  const { base, adapter, checkpoint } = await resolveSource(deps.catalog, job);
  const filled = fillDefaults(job, base);

  const versions: dataset.DatasetVersion[] = [];
  for (const [i, mixture] of job.trainDatasets.entries()) {
    versions.push(await readyVersion(deps.catalog, mixture.datasetVersion, `train_datasets[${i}].dataset_version`));
  }
  if (job.validationDataset !== '')
    versions.push(await readyVersion(deps.catalog, job.validationDataset, 'validation_dataset'));

  let rows = 0;
  let tokens = 0;
  let longestRow = 0;
  let templateDigest = '';
  for (const [i, version] of versions.entries()) {
    const metadata = parseDatasetMetadata((await deps.store.getManifest(version.manifestDigest)).metadata);
    if (metadata.tokenizerDigest !== base.tokenizerDigest) {
      throw reference(
        i < job.trainDatasets.length ? `train_datasets[${i}].dataset_version` : 'validation_dataset',
        `it was tokenised for another model than ${base.name} (tokenizer ${metadata.tokenizerDigest.slice(0, 19)}… instead of ${base.tokenizerDigest.slice(0, 19)}…); build a version with this model`,
        'TOKENIZER_MISMATCH',
      );
    }
    if (i === 0) templateDigest = metadata.templateDigest;
    if (metadata.templateDigest !== templateDigest) {
      throw reference(
        `train_datasets[${i}].dataset_version`,
        'all datasets of a job must share one template',
        'TEMPLATE_MISMATCH',
      );
    }
    if (i >= job.trainDatasets.length) continue;
    rows += metadata.train.rowCount;
    tokens += metadata.train.tokenCount;
    longestRow = Math.max(longestRow, metadata.train.maxRowTokens);
  }
  if (rows === 0) throw reference('train_datasets', 'the datasets hold no usable training row', 'NO_TRAINABLE_TOKENS');
  if (longestRow > base.contextLength) {
    throw reference(
      'train_datasets',
      `the longest row has ${longestRow} tokens; ${base.name} takes ${base.contextLength}`,
      'CONTEXT_TOO_LONG',
    );
  }
  if (filled.batch.packedTokens > 0 && longestRow > filled.batch.packedTokens) {
    throw reference(
      'batch.packed_tokens',
      `the longest row has ${longestRow} tokens; packed_tokens must be at least that`,
    );
  }

  const spec: lifecycle.ResolvedSpec = {
    baseModel: base.name,
    baseDigest: base.digest,
    tokenizerDigest: base.tokenizerDigest,
    templateDigest,
    datasetDigests: versions.map((version) => version.manifestDigest),
    adapterSpec: filled.adapterSpec,
    quantization: filled.quantization,
    optimizer: filled.optimizer,
    schedule: resolveSchedule(job.schedule, filled, stepCount(filled.schedule, filled.batch, rows, tokens)),
    batch: filled.batch,
    evaluation: filled.evaluation,
    earlyStop: filled.earlyStop,
    seed: filled.seed,
    initialAdapterDigest: adapter,
    initialCheckpointDigest: checkpoint,
  };
  return {
    spec,
    digest: specDigest(spec),
    dataStats: versions[0]?.stats,
    estimate: await estimate(spec, base, await configOf(deps.store, base), { rows, tokens, longestRow }, job.resources),
  };
}
