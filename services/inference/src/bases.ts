import { type Catalog, names } from '@medmesh/catalog';
import { loadModel, type Model } from '@medmesh/engine';
import { Failure, notFound } from '@medmesh/errors';
import type { Logger } from '@medmesh/log';
import type { Cache, ObjectStore } from '@medmesh/objects';
import { model as modelProto } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { withSpan } from '@medmesh/telemetry';
import { loadTokenizer, type TextTokenizer } from '@medmesh/text';
import type { InferenceConfig } from './config.ts';
import { tellDeviceLost } from './device-lost.ts';
import { findByDigest } from './find-by-digest.ts';
import { createResidentSet, type Lease } from './resident.ts';

/** A base in memory with its tokenizer. */
export type Base = {
  record: modelProto.Model;
  model: Model;
  tokenizer: TextTokenizer;
  /** Where it answers, in one line. */
  device: string;
  release: () => void;
};

export type BaseDeps = {
  catalog: Catalog;
  store: ObjectStore;
  cache: Cache;
  log: Logger;
  config: InferenceConfig;
  /** A base's device is beyond use in this process. May be told more than once. */
  onDeviceLost: () => void;
  signal: AbortSignal;
};

export type Bases = {
  /** Finds the record of a name or digest. Failure `not_found`, or `failed_precondition` if it is not ready. */
  resolve(ref: string): Promise<modelProto.Model>;
  /**
   * The base in memory, loaded if need be, as it is stored or, where an adapter was trained on a 16-bit base that was quantized for the training alone,
   * quantized in the same way: an adapter must meet the very weights it was trained on. Release it after use.
   */
  acquire(record: modelProto.Model, trainedOn?: string): Promise<Lease<Base>>;
  /** The base that a request's `field` names by name or digest; where that is empty, the only one in memory. */
  named(base: string, field: string): Promise<modelProto.Model>;
  /** The base in memory, in any form. */
  peek(record: modelProto.Model): Base | undefined;
  /** Every base in memory, each form by itself. */
  all(): Base[];
  /** Unloads every form of the base; false if there is none. */
  drop(record: modelProto.Model): Promise<boolean>;
  close(): Promise<void>;
};

/** How a base is stored, as responses say it. */
export function quantizationName(quantization: modelProto.Quantization): string {
  if (quantization === modelProto.Quantization.NF4_DOUBLE_QUANT) return 'nf4-double-quant';
  return quantization === modelProto.Quantization.NF4 ? 'nf4' : 'none';
}

/** Whether a stored base has to be quantized while it is loaded. */
const quantizesOnLoad = (record: modelProto.Model, trainedOn: string | undefined): boolean =>
  trainedOn === 'nf4' && record.quantization === modelProto.Quantization.NONE;

/** Sequences at once: a request may have several, one for each of its choices or of the continuations to be scored. */
const leastSequences = 64;

const keyOfForm = (record: modelProto.Model, nf4: boolean): string => (nf4 ? `${record.digest}+nf4` : record.digest);

/** The model on its device, ready to generate there. */
async function openModel(dir: string, nf4: boolean, { config, log, onDeviceLost }: BaseDeps) {
  const model = await loadModel({
    modelDir: dir,
    quantize: nf4 ? 'nf4' : 'none',
    threads: config.ENGINE_THREADS,
    device: config.ENGINE_DEVICE || 'cpu',
  });
  try {
    const { device, memory } = await model.openGenerator({
      maxRunning: Math.max(leastSequences, config.MAX_RUNNING_REQUESTS),
      memoryBudget: config.ENGINE_MEMORY_BUDGET,
      mostStepGrowth: config.ENGINE_MOST_STEP_GROWTH,
      ...(config.ENGINE_SAME_FOR_ANY_BATCH !== 'auto' && {
        sameForAnyBatch: config.ENGINE_SAME_FOR_ANY_BATCH === 'on',
      }),
    });
    if (memory !== '') log.info({ device, memory: memory.split('\n') }, 'memory of the device');
    return { model: tellDeviceLost(model, onDeviceLost), device };
  } catch (error) {
    await model.close();
    throw error;
  }
}

export function createBases(deps: BaseDeps): Bases {
  const resident = createResidentSet<Base>({
    maxBytes: Number.POSITIVE_INFINITY,
    maxCount: deps.config.MAX_LOADED_BASES,
    async unload(base) {
      await base.model.close();
      base.release();
      deps.log.info({ base: base.record.name }, 'base unloaded');
    },
  });

  const load = (record: modelProto.Model, nf4: boolean) =>
    withSpan('inference.load_base', { attributes: { 'medmesh.base.digest': record.digest } }, async () => {
      const { dir, release } = await deps.cache.materialize(await deps.store.getManifest(record.digest), deps.signal);
      try {
        const tokenizer = await loadTokenizer(dir);
        if (tokenizer.digest !== record.tokenizerDigest) {
          throw new Failure('data_loss', `${record.name} has another tokenizer than its record says`, {
            reason: 'ARTIFACT_CORRUPT',
          });
        }
        const { model, device } = await openModel(dir, nf4, deps);
        deps.log.info(
          { base: record.name, digest: record.digest, nf4, bytes: model.residentBytes, device },
          'base loaded',
        );
        return { value: { record, model, tokenizer, device, release }, bytes: model.residentBytes };
      } catch (error) {
        release();
        throw error;
      }
    });

  const formsOf = (record: modelProto.Model) => [false, true].map((nf4) => keyOfForm(record, nf4));
  const resolve = async (ref: string): Promise<modelProto.Model> => {
    let record: modelProto.Model | undefined;
    if (ref.startsWith('sha256:')) {
      record = (await findByDigest(deps.catalog.models, ref))?.value;
    } else {
      names.model.parse(ref);
      record = (await deps.catalog.models.get(keyOf(ref)))?.value;
    }
    if (record === undefined) throw notFound(ref);
    if (record.state !== modelProto.Model_State.READY) {
      throw new Failure('failed_precondition', `${record.name} is not ready`, { reason: 'MODEL_NOT_READY' });
    }
    return record;
  };

  return {
    resolve,
    acquire(record, trainedOn) {
      const nf4 = quantizesOnLoad(record, trainedOn);
      return resident.acquire(keyOfForm(record, nf4), () => load(record, nf4));
    },
    peek: (record) => formsOf(record).flatMap((key) => resident.peek(key)?.value ?? [])[0],
    async drop(record) {
      const dropped = await Promise.all(formsOf(record).map((key) => resident.drop(key)));
      return dropped.includes(true);
    },
    all: () => resident.entries().map(([, { value }]) => value),
    close: () => resident.close(),
    async named(base, field) {
      if (base !== '') return resolve(base);
      const bases = [
        ...new Map(resident.entries().map(([, { value }]) => [value.record.digest, value.record])).values(),
      ];
      const [first] = bases;
      if (bases.length !== 1 || first === undefined) {
        throw new Failure('invalid_argument', `${field}: name one; ${bases.length} bases are loaded`, {
          reason: 'FIELD_INVALID',
          fields: [{ field, description: 'is empty, and there is not exactly one loaded base' }],
        });
      }
      return first;
    },
  };
}
