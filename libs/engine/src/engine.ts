import { adapterHandle, rememberAdapter } from './adapter-handles.ts';
import { watchCache } from './cache-watch.ts';
import { call, cancelled } from './call.ts';
import { EngineError } from './errors.ts';
import { embed, generate, generateBatches, generateEach, openGenerator, scoreContinuation } from './generation.ts';
import { type ModelHandle, type NativeTrainerOptions, native, type TrainerHandle } from './native.ts';
import type {
  Adapter,
  EngineDevice,
  LoadOptions,
  Model,
  PlanOptions,
  Trainer,
  TrainerOptions,
  TrainingPlan,
} from './types.ts';

/** Semantic version and the digest of the sources it was built from. */
export const engineVersion: string = native.version;

/**
 * Keeps the free memory that the C library's allocator holds on to in bounds, for the whole process: for servers, which run for months. To be called at
 * the start.
 */
export const boundAllocator = (): void => native.boundAllocator();

/** The devices this build can use. */
export const listDevices = (): EngineDevice[] => native.listDevices();

/**
 * Bytes of a GPU's memory in use now, by this and other processes. Waits for no step.
 * EngineError `unsupported` for a device that is not there.
 */
export const usedDeviceMemory = (device: EngineDevice): Promise<number> =>
  call(undefined, () => native.usedDeviceMemory(device.index));

/** Loads a base from a Hugging Face folder. Its weights stay mapped from the files where they can. */
export async function loadModel(o: LoadOptions): Promise<Model> {
  const { handle, info, residentBytes } = await call(o.signal, (cancel) =>
    native.loadModel(o.modelDir, o.quantize ?? 'none', o.compute ?? 'bf16', o.threads ?? 0, o.device ?? 'auto', cancel),
  );
  if (o.signal?.aborted) {
    // The abort came when the last tensor had been read: nobody waits for the model any more.
    await call(undefined, () => native.close(handle));
    throw cancelled();
  }
  return {
    info,
    residentBytes,
    loadAdapter: (dir) => loadAdapter(handle, dir),
    score: ({ tokens, adapter, signal }) =>
      call(signal, (cancel) => native.score(handle, tokens, adapterHandle(adapter), cancel)),
    logits: ({ tokens, adapter, signal }) =>
      call(signal, (cancel) => native.logits(handle, tokens, adapterHandle(adapter), cancel)),
    createTrainer: (options) => createTrainer(handle, options),
    openGenerator: (options) => openGenerator(handle, options),
    generate: (options) => generate(handle, options),
    generateEach: (options, take) => generateEach(handle, options, take),
    generateBatches: (options) => generateBatches(handle, options),
    scoreContinuation: (options) => scoreContinuation(handle, options),
    embed: (options) => embed(handle, options),
    watchCache: (onChanges, onEnd) => watchCache(handle, onChanges, onEnd),
    generationLoad: () => native.generationLoad(handle) ?? undefined,
    close: () => call(undefined, () => native.close(handle)),
  };
}

async function loadAdapter(model: ModelHandle, dir: string): Promise<Adapter> {
  const { handle, ...facts } = await call(undefined, () => native.loadAdapter(model, dir));
  const adapter: Adapter = { ...facts, close: () => call(undefined, () => native.close(handle)) };
  rememberAdapter(adapter, handle);
  return adapter;
}

/** Whole numbers only: a typed array would wrap or cut others silently. */
function layerNumbers(layers: number[]): Uint32Array {
  const wrong = layers.find((layer) => !(Number.isInteger(layer) && layer >= 0 && layer < 2 ** 32));
  if (wrong !== undefined) throw new EngineError('invalid', `layers has ${wrong}; use whole numbers from 0`);
  return Uint32Array.from(layers);
}

function nativeOptions(o: TrainerOptions): NativeTrainerOptions {
  const method = o.method;
  return {
    method:
      method.kind === 'lora'
        ? {
            ...method,
            rslora: method.rslora ?? false,
            dora: method.dora ?? false,
            layers: layerNumbers(method.layers ?? []),
            modulesToSave: method.modulesToSave ?? [],
            initAdapterDir: method.initAdapterDir ?? null,
          }
        : method,
    optimizer: o.optimizer,
    beta1: o.beta1 ?? 0.9,
    beta2: o.beta2 ?? 0.999,
    epsilon: o.epsilon ?? 1e-8,
    weightDecay: o.weightDecay,
    maxGradNorm: o.maxGradNorm,
    schedule: o.schedule,
    seed: o.seed,
    gradientCheckpointing: o.gradientCheckpointing ?? true,
    neftuneAlpha: o.neftuneAlpha ?? 0,
    memoryBudget: o.memoryBudget === undefined || o.memoryBudget === 'auto' ? 0 : o.memoryBudget,
    microBatchTokens: o.microBatchTokens ?? 0,
  };
}

/** Bytes that training on the CPU will take: exactly what the trainer then holds. Reads headers at most. */
export async function planTraining(o: PlanOptions): Promise<TrainingPlan> {
  const options = nativeOptions(o.trainer);
  return await call(undefined, () => native.planTraining(o.model, o.quantize ?? 'none', options, o.tokens));
}

async function createTrainer(model: ModelHandle, o: TrainerOptions): Promise<Trainer> {
  const options = nativeOptions(o);
  const { handle, ...facts } = await call(undefined, () => native.createTrainer(model, options));
  return trainerOf(handle, facts);
}

function trainerOf(
  handle: TrainerHandle,
  facts: Pick<Trainer, 'trainableParameterCount' | 'device' | 'noGpuBecause' | 'plan'>,
): Trainer {
  let step = 0;
  return {
    get step() {
      return step;
    },
    ...facts,
    async trainStep(micro, signal) {
      const result = await call(signal, (cancel) => native.trainStep(handle, micro, cancel));
      step = result.step;
      return result;
    },
    evaluate: (micro, signal) => call(signal, (cancel) => native.evaluate(handle, micro, cancel)),
    scoreAdapter: (dir, sequences, signal) =>
      call(signal, (cancel) => native.scoreAdapter(handle, dir, sequences, cancel)),
    saveAdapter: (dir, o) => call(undefined, () => native.saveAdapter(handle, dir, o?.baseModelName ?? '')),
    saveCheckpoint: (dir) => call(undefined, () => native.saveCheckpoint(handle, dir)),
    async restoreCheckpoint(dir) {
      step = await call(undefined, () => native.restoreCheckpoint(handle, dir));
    },
    saveGradients: (path) => call(undefined, () => native.saveGradients(handle, path)),
    close: () => call(undefined, () => native.close(handle)),
  };
}
