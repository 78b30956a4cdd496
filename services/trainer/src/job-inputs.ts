import { type DatasetMetadata, names, parseDatasetMetadata } from '@medmesh/catalog';
import { loadModel, type Model } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { lifecycle } from '@medmesh/proto';
import { withSpan } from '@medmesh/telemetry';
import type { TrainerDeps } from './deps.ts';
import { chooseDevice, isFreeChoice } from './device.ts';
import { concatRows, openRows, type RowReader } from './shards.ts';

/** Everything a job reads, opened. */
export type JobInputs = {
  model: Model;
  modelDir: string;
  train: RowReader;
  /** Undefined if there is no validation split. */
  validation: RowReader | undefined;
  dataset: DatasetMetadata;
  initialAdapterDir: string | undefined;
  initialCheckpointDir: string | undefined;
  close(): Promise<void>;
};

/** Fetches base, shards, and what training starts from. Everything is verified by digest on the way. Closes what it opened if it fails. */
export async function openInputs(
  deps: TrainerDeps,
  job: lifecycle.FineTuningJob,
  spec: lifecycle.ResolvedSpec,
  setPhase: (phase: lifecycle.FineTuningJob_Phase) => Promise<void>,
  signal: AbortSignal,
): Promise<JobInputs> {
  const closers: (() => Promise<void> | void)[] = [];
  const close = async () => {
    for (const closer of closers.reverse()) await closer();
  };
  const fetch = async (digest: string) => {
    const manifest = await deps.store.getManifest(digest);
    const { dir, release } = await deps.cache.materialize(manifest, signal);
    closers.push(release);
    return { dir, manifest };
  };
  const Phase = lifecycle.FineTuningJob_Phase;
  try {
    await setPhase(Phase.FETCH_DATA);
    const { train, validation, dataset } = await withSpan('trainer.fetch_data', {}, async () => {
      const trains: RowReader[] = [];
      const validations: RowReader[] = [];
      let first: DatasetMetadata | undefined;
      for (const [i, digest] of spec.datasetDigests.entries()) {
        const { dir, manifest } = await fetch(digest);
        const metadata = parseDatasetMetadata(manifest.metadata);
        first ??= metadata;
        const isValidationOnly = i >= job.trainDatasets.length;
        if (!isValidationOnly) trains.push(await openRows(dir, metadata.train.paths));
        // A version named for validation gives all its rows: those it would train on as well as those it holds out.
        const held = isValidationOnly
          ? [...metadata.train.paths, ...metadata.validation.paths]
          : job.validationDataset === ''
            ? metadata.validation.paths
            : [];
        if (held.length > 0) validations.push(await openRows(dir, held));
      }
      if (first === undefined)
        throw new Failure('invalid_argument', 'the job names no dataset', { reason: 'FIELD_INVALID' });
      const held = concatRows(validations);
      return { train: concatRows(trains), validation: held.rowCount > 0 ? held : undefined, dataset: first };
    });
    closers.push(() => train.close());
    if (validation !== undefined) closers.push(() => validation.close());

    await setPhase(Phase.FETCH_BASE);
    const { dir: modelDir } = await withSpan('trainer.fetch_base', {}, () => fetch(spec.baseDigest));
    const initialAdapterDir =
      spec.initialAdapterDigest === '' ? undefined : (await fetch(spec.initialAdapterDigest)).dir;
    const initialCheckpointDir =
      spec.initialCheckpointDigest === '' ? undefined : (await fetch(spec.initialCheckpointDigest)).dir;

    const compute = spec.quantization?.computeDtype === 'f32' ? 'f32' : 'bf16';
    // A free choice is the engine's: it knows what a GPU trains.
    const named = isFreeChoice(deps.config.ENGINE_DEVICE) ? undefined : chooseDevice(deps.config.ENGINE_DEVICE);
    const quantize = spec.quantization?.kind === lifecycle.QuantizationSpec_Kind.NF4_DOUBLE_QUANT;
    if (quantize) await setPhase(Phase.QUANTIZE);
    const model = await withSpan('trainer.load_base', {}, () =>
      loadModel({
        modelDir,
        quantize: quantize ? 'nf4' : 'none',
        compute,
        ...(deps.config.ENGINE_THREADS > 0 ? { threads: deps.config.ENGINE_THREADS } : {}),
        device: named === undefined ? 'auto' : `${named.kind}:${named.index}`,
      }),
    );
    closers.push(() => model.close());
    deps.log.info(
      { job: job.name, rows: train.rowCount, base: names.model.parse(spec.baseModel).model },
      'inputs are open',
    );
    return { model, modelDir, train, validation, dataset, initialAdapterDir, initialCheckpointDir, close };
  } catch (error) {
    await close();
    throw error;
  }
}
