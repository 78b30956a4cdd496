// The addon's functions: same names and order as addon/module.cpp. Absent is null, never a missing field.
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { EngineError } from './errors.ts';
import type {
  ByteAutomaton,
  EngineDevice,
  ExportedGguf,
  GenerationLoad,
  GeneratorInfo,
  GgufParity,
  MicroBatch,
  ModelInfo,
  NewTensor,
  Progress,
  SafetensorsInfo,
  StepResult,
  TensorShape,
  TrainingPlan,
} from './types.ts';

declare const handleKind: unique symbol;
/** An object of the engine; freed by close, or when it is collected. */
export type Handle<Kind extends string> = { readonly [handleKind]: Kind };
export type CancelToken = Handle<'cancel'>;
export type ModelHandle = Handle<'model'>;
export type AdapterHandle = Handle<'adapter'>;
export type VocabularyHandle = Handle<'vocabulary'>;
export type ConstraintHandle = Handle<'constraint'>;
export type TrainerHandle = Handle<'trainer'>;
export type FileHandle = Handle<'file'>;

export type NativeTrainerOptions = {
  method:
    | {
        kind: 'lora';
        rank: number;
        alpha: number;
        dropout: number;
        rslora: boolean;
        dora: boolean;
        targetModules: string[];
        layers: Uint32Array;
        modulesToSave: string[];
        initAdapterDir: string | null;
      }
    | { kind: 'full' };
  optimizer: string;
  beta1: number;
  beta2: number;
  epsilon: number;
  weightDecay: number;
  maxGradNorm: number;
  schedule: { kind: string; warmupSteps: number; totalSteps: number; learningRate: number };
  seed: number;
  gradientCheckpointing: boolean;
  neftuneAlpha: number;
  memoryBudget: number;
  microBatchTokens: number;
};

export type NativeSampling = {
  temperature: number;
  topP: number;
  topK: number;
  minP: number;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  seed: bigint;
  maxTokens: number;
  stopTokenIds: number[];
  logitBias: { tokenId: number; bias: number }[];
  logprobs: number;
};

/** Of each step four numbers: token, log-probability, tokens of the prompt that came from the cache, and how the sequence ends with it (0: it does not). */
export type NativeSteps = Float64Array;
export const nativeFinishes = [undefined, 'stop', 'length', 'complete'] as const;

export type Native = {
  readonly version: string;
  boundAllocator(): void;

  listDevices(): EngineDevice[];
  createCancel(): CancelToken;
  cancel(token: CancelToken): void;
  close(handle: Handle<string>): Promise<void>;

  inspectSafetensors(path: string): Promise<SafetensorsInfo>;
  inspectModel(dir: string): Promise<ModelInfo>;
  quantizeModel(
    modelDir: string,
    outDir: string,
    doubleQuant: boolean,
    skipModules: string[],
    replace: boolean,
    onProgress: ((progress: Progress) => void) | null,
    cancel: CancelToken | null,
  ): Promise<{ weightBytes: number; tensors: number }>;
  mergeAdapter(
    modelDir: string,
    adapterDir: string,
    outDir: string,
    replace: boolean,
    onProgress: ((progress: Progress) => void) | null,
    cancel: CancelToken | null,
  ): Promise<{ weightBytes: number; base: 'stored' | 'nf4_dequantized' }>;
  exportGguf(
    modelDir: string,
    adapterDir: string | null,
    outPath: string,
    type: string,
    name: string,
    replace: boolean,
    onProgress: ((progress: Progress) => void) | null,
    cancel: CancelToken | null,
  ): Promise<ExportedGguf>;
  verifyGguf(
    modelDir: string,
    adapterDir: string | null,
    path: string,
    sequences: Uint32Array[],
    cancel: CancelToken | null,
  ): Promise<{ recorded: GgufParity | null; measured: GgufParity; logprobs: Float32Array[] }>;
  writeSafetensors(path: string, tensors: NewTensor[], metadata: Record<string, string>): Promise<void>;
  readSafetensors(path: string): Promise<{ name: string; dtype: string; shape: number[]; data: Uint8Array }[]>;
  openSafetensors(path: string, tensors: TensorShape[], metadata: Record<string, string>): Promise<FileHandle>;
  appendTensor(file: FileHandle, name: string, bytes: Uint8Array): Promise<void>;
  finishSafetensors(file: FileHandle): Promise<void>;

  usedDeviceMemory(index: number): Promise<number>;
  loadModel(
    modelDir: string,
    quantize: string,
    compute: string,
    threads: number,
    device: string,
    cancel: CancelToken | null,
  ): Promise<{ handle: ModelHandle; info: ModelInfo; residentBytes: number }>;
  loadAdapter(
    model: ModelHandle,
    dir: string,
  ): Promise<{
    handle: AdapterHandle;
    rank: number;
    alpha: number;
    dropout: number;
    rslora: boolean;
    dora: boolean;
    targetModules: string[];
    layers: number[];
    modulesToSave: string[];
    parameterCount: number;
  }>;
  score(
    model: ModelHandle,
    tokens: Uint32Array,
    adapter: AdapterHandle | null,
    cancel: CancelToken | null,
  ): Promise<Float32Array>;
  logits(
    model: ModelHandle,
    tokens: Uint32Array,
    adapter: AdapterHandle | null,
    cancel: CancelToken | null,
  ): Promise<Float32Array>;

  createVocabulary(bytes: Uint8Array, offsets: Uint32Array): Promise<VocabularyHandle>;
  createConstraint(
    vocabulary: VocabularyHandle,
    automaton: Omit<ByteAutomaton, 'stack'> & { stack: NonNullable<ByteAutomaton['stack']> | null },
  ): ConstraintHandle;
  openGenerator(
    model: ModelHandle,
    options: { maxRunning: number; memoryBudget: number; sameForAnyBatch: boolean | null; mostStepGrowth: number },
  ): Promise<GeneratorInfo>;
  generate(
    model: ModelHandle,
    tokens: Uint32Array,
    adapter: AdapterHandle | null,
    sampling: NativeSampling,
    options: {
      generated: number;
      scored: number;
      constraint: ConstraintHandle | null;
      priority: number;
      prefixScope: Uint8Array | null;
      gatherMs: number;
    },
    onSteps: (
      steps: NativeSteps,
      /** Of each step the most likely tokens; null where none were asked for. */
      tops: { tokenId: number; logprob: number }[][] | null,
      ended: boolean,
      error: Error | null,
    ) => void,
  ): number;
  embed(
    model: ModelHandle,
    tokens: Uint32Array,
    adapter: AdapterHandle | null,
    pooling: string,
    priority: number,
    onEnd: (vector: Float32Array | null, error: Error | null) => void,
  ): number;
  watchCache(
    model: ModelHandle,
    onChanges: (changes: Uint32Array | null, whole: boolean) => void,
  ): { watch: number; callback: number; blockTokens: number };
  unwatchCache(model: ModelHandle, watch: number, callback: number): void;
  generationLoad(model: ModelHandle): GenerationLoad | null;
  cancelGeneration(model: ModelHandle, request: number): void;

  createTrainer(
    model: ModelHandle,
    options: NativeTrainerOptions,
  ): Promise<{
    handle: TrainerHandle;
    trainableParameterCount: number;
    device: string;
    noGpuBecause: string;
    plan: TrainingPlan | null;
  }>;
  planTraining(
    model: string | { config: string; weightBytes: number },
    quantize: string,
    options: NativeTrainerOptions,
    tokens: number,
  ): Promise<TrainingPlan>;
  trainStep(trainer: TrainerHandle, micro: MicroBatch[], cancel: CancelToken | null): Promise<StepResult>;
  evaluate(
    trainer: TrainerHandle,
    micro: MicroBatch[],
    cancel: CancelToken | null,
  ): Promise<{ loss: number; trainableTokens: number }>;
  scoreAdapter(
    trainer: TrainerHandle,
    dir: string,
    sequences: Uint32Array[],
    cancel: CancelToken | null,
  ): Promise<Float32Array[]>;
  saveAdapter(trainer: TrainerHandle, dir: string, baseModelName: string): Promise<void>;
  saveCheckpoint(trainer: TrainerHandle, dir: string): Promise<void>;
  restoreCheckpoint(trainer: TrainerHandle, dir: string): Promise<number>;
  saveGradients(trainer: TrainerHandle, path: string): Promise<void>;
};

const addonPath = join(import.meta.dirname, '..', 'build', 'release', 'engine.node');
if (!existsSync(addonPath)) {
  throw new EngineError('io', `${addonPath} is missing; build it with: pnpm --filter @medmesh/engine build`);
}

export const native: Native = createRequire(import.meta.url)(addonPath) as Native;
