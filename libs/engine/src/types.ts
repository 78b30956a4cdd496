/** Precision of matrix products: `bf16` rounds their operands and sums in fp32; everything else is fp32 in both. */
export type Dtype = 'f32' | 'bf16';

export type EngineDevice = {
  kind: 'cpu' | 'cuda';
  index: number;
  name: string;
  /** Best instruction set in use, e.g. `avx512`, or the GPU's architecture. */
  isa: string;
  threads: number;
  memoryBytes: number;
};

export type TensorInfo = { name: string; dtype: string; shape: number[]; byteOffset: number; byteLength: number };

export type SafetensorsInfo = { metadata: Record<string, string>; tensors: TensorInfo[] };

export type ModelInfo = {
  architecture: string;
  modelType: string;
  layers: number;
  hiddenSize: number;
  vocabSize: number;
  parameterCount: number;
  contextLength: number;
  tied: boolean;
  /** Type of the embedding table: f32, f16 or bf16. */
  storedDtype: string;
  quantization: 'none' | 'nf4';
  doubleQuant: boolean;
  weightBytes: number;
  /** Modules a LoRA adapter may name. */
  targetModules: string[];
};

/** `done` and `total` in bytes. */
export type Progress = { done: number; total: number };

export type QuantizeOptions = {
  modelDir: string;
  outDir: string;
  /** Quantizes the scales too (0.13 bytes less per 64 weights). Default true. */
  doubleQuant?: boolean;
  /** Linears to leave in 16 bits: whole paths, their beginnings (`model.layers.0`) or last parts (`down_proj`). */
  skipModules?: string[];
  /** Lets a complete result take the place of what is at `outDir`. Default false: only an empty folder may be there. */
  replace?: boolean;
  onProgress?: ((progress: Progress) => void) | undefined;
  signal?: AbortSignal | undefined;
};

export type MergeOptions = {
  modelDir: string;
  adapterDir: string;
  outDir: string;
  /** As in QuantizeOptions. */
  replace?: boolean;
  onProgress?: ((progress: Progress) => void) | undefined;
  signal?: AbortSignal | undefined;
};

/** How the matrices of a GGUF file are stored: in 32, 16, 8.5, 4.5 and about 4.8 bits a weight. */
export type GgufType = 'f32' | 'f16' | 'q8_0' | 'q4_0' | 'q4_k_m';

export type ExportGgufOptions = {
  /** A Hugging Face folder, 16- or 32-bit or NF4. */
  modelDir: string;
  /** A PEFT folder whose update is added first. */
  adapterDir?: string | undefined;
  outPath: string;
  /** Replaces an existing file; refused otherwise. Default false. */
  replace?: boolean | undefined;
  type: GgufType;
  /** The model's name in the file. Default: the folder's. */
  name?: string | undefined;
  onProgress?: ((progress: Progress) => void) | undefined;
  signal?: AbortSignal | undefined;
};

/** How far an exported file is from its source. The same numbers are in the file, under `medmesh.parity`. */
export type GgufParity = {
  /** Mean |Δ| of a weight, relative to the root mean square of its tensor. */
  weightMean: number;
  /** Largest |Δ| of a weight, relative to the largest weight of its tensor. */
  weightMax: number;
  /** Length of the fixed token sequence that both were run on. */
  probeTokens: number;
  /** |Δ log p| of the sequence's next tokens, in nats: mean and largest. */
  logprobMean: number;
  logprobMax: number;
  /** Mean Kullback–Leibler divergence of the next-token distributions, in nats. */
  klMean: number;
  /** Share of positions with the same most likely token. */
  top1Agreement: number;
};

export type ExportedGguf = {
  fileBytes: number;
  tensors: number;
  /** llama.cpp's name of the model's graph: `llama`, `qwen2`, … */
  architecture: string;
  /** `no_vocab`: the folder has no tokenizer, so the file takes token ids only. */
  tokenizer: 'gpt2' | 'llama' | 'no_vocab';
  /** The longest sequence that llama.cpp computes as the model means it; shorter than the model's where its graph lacks sliding windows. */
  contextLength: number;
  /** Which numbers were written, or the adapter was added to. */
  base: 'stored' | 'nf4_dequantized';
  parity: GgufParity;
};

export type VerifyGgufOptions = {
  /** What the file was made of. */
  modelDir: string;
  adapterDir?: string | undefined;
  path: string;
  /** To score by the file's numbers, two tokens or more each. */
  sequences: Uint32Array[];
  signal?: AbortSignal | undefined;
};

export type VerifiedGguf = {
  /** What was written into the file when it was made; absent when another program made it. */
  recorded: GgufParity | undefined;
  /** The same figures, from the file and its source as they are now. */
  measured: GgufParity;
  /** log p(tokens[i + 1] | tokens[..i]) of each sequence. */
  logprobs: Float32Array[];
};

export type TensorShape = { name: string; dtype: 'u8' | 'u32' | 'u64' | 'i64' | 'f32'; shape: number[] };

export type NewTensor = TensorShape & {
  /** Little-endian elements, row-major. */
  data: Uint8Array;
};

/** A file that appears at its name only when it is finished. */
export interface SafetensorsWriter {
  /** The next bytes of a tensor that was announced; in pieces, in any order of tensors. */
  append(name: string, bytes: Uint8Array): Promise<void>;
  /** Fails unless every tensor is complete. */
  finish(): Promise<void>;
  /** Gives up what is not finished. */
  close(): Promise<void>;
}

export type StoredTensor = { dtype: string; shape: number[]; data: Uint8Array };

export type LoadOptions = {
  modelDir: string;
  /** `nf4` quantizes a 16- or 32-bit base while it is loaded. Default `none`: as stored. */
  quantize?: 'none' | 'nf4';
  /** Default `bf16`. */
  compute?: Dtype;
  /** 0, the default, uses what the cgroup's quota allows. */
  threads?: number;
  /** `auto` (default), `cpu`, or a device as listDevices names it. */
  device?: string;
  signal?: AbortSignal | undefined;
};

/** A loaded base. Closing it closes its adapters and trainers and cancels their work. */
export interface Model {
  readonly info: ModelInfo;
  readonly residentBytes: number;
  /** A PEFT folder; every target must map onto this base or it fails. */
  loadAdapter(dir: string): Promise<Adapter>;
  /** log p(tokens[i + 1] | tokens[..i]); length T − 1. */
  score(o: {
    tokens: Uint32Array;
    adapter?: Adapter | undefined;
    signal?: AbortSignal | undefined;
  }): Promise<Float32Array>;
  /** All logits, T · vocabSize, row by row. */
  logits(o: {
    tokens: Uint32Array;
    adapter?: Adapter | undefined;
    signal?: AbortSignal | undefined;
  }): Promise<Float32Array>;
  createTrainer(o: TrainerOptions): Promise<Trainer>;
  /**
   * Makes the generator on the model's device with these settings, once, before anything is generated. Without it the first generation makes one with
   * the defaults, and waits for that: on a GPU the weights are copied there.
   */
  openGenerator(o?: GeneratorOptions): Promise<GeneratorInfo>;
  /** Several may run at once; they share the machine fairly. */
  generate(o: GenerateOptions): AsyncIterable<GenerateStep>;
  /**
   * Gives `take` every step as it comes, at a fraction of the cost; `take` returns true when it has enough. With `gatherMs` steps after the first may wait
   * so long for those that follow, of all requests that gather; what waits longer than that goes after the step that runs then.
   */
  generateEach(
    o: GenerateOptions & { gatherMs?: number | undefined },
    take: (steps: GenerateStep[]) => boolean,
  ): Promise<void>;
  /** The same for who reads at a pace of its own. */
  generateBatches(o: GenerateOptions & { gatherMs?: number | undefined }): AsyncIterable<GenerateStep[]>;
  /** Log-probabilities of given tokens, computed beside what is generated: in the same queue and steps, over the same cache. */
  scoreContinuation(o: ScoreContinuationOptions): Promise<ContinuationScore>;
  /**
   * The hidden states of all tokens after the final norm, pooled to one vector [hidden], computed beside what is generated. Nothing of the text stays in
   * the cache. An abort takes effect before the next step.
   */
  embed(o: EmbedOptions): Promise<Float32Array>;
  /**
   * Follows what the cache remembers of texts for those that begin alike: `onChanges` first gets all of it, every block after the one before it, then what
   * each step changed; `onEnd` is called once when the model is closed. `stop` ends it: nothing is called any more.
   */
  watchCache(onChanges: (changes: CacheChange[], whole: boolean) => void, onEnd: () => void): CacheWatch;
  /** Undefined before the first generation. */
  generationLoad(): GenerationLoad | undefined;
  close(): Promise<void>;
}

export interface Adapter {
  readonly rank: number;
  readonly alpha: number;
  readonly dropout: number;
  readonly rslora: boolean;
  readonly dora: boolean;
  readonly targetModules: string[];
  /** Those that are adapted; empty: all. */
  readonly layers: number[];
  /** Modules it holds whole. */
  readonly modulesToSave: string[];
  readonly parameterCount: number;
  close(): Promise<void>;
}

export type LoraOptions = {
  kind: 'lora';
  /** 1 to 4096. */
  rank: number;
  alpha: number;
  /** 0 to below 1. */
  dropout: number;
  /** Scale alpha / √rank in place of alpha / rank. */
  rslora?: boolean;
  /** DoRA: trains the magnitude of every output beside its direction. */
  dora?: boolean;
  targetModules: string[];
  /** Layers to adapt, from 0, ascending. Default: all. */
  layers?: number[];
  /** `embed_tokens`, `lm_head`: trained whole beside the matrices, and kept in the adapter. Default: none. */
  modulesToSave?: string[];
  /** A PEFT folder to continue from. */
  initAdapterDir?: string;
};

export type TrainerOptions = {
  method: LoraOptions | { kind: 'full' };
  optimizer: 'adamw' | 'adamw_8bit';
  /** Default 0.9. */
  beta1?: number;
  /** Default 0.999. */
  beta2?: number;
  /** Default 1e-8. */
  epsilon?: number;
  weightDecay: number;
  /** 0: no clipping. */
  maxGradNorm: number;
  schedule: { kind: 'linear' | 'cosine' | 'constant'; warmupSteps: number; totalSteps: number; learningRate: number };
  seed: number;
  /** Keeps one activation per layer and computes the rest again in the backward pass; the result is the same bits. Default true. */
  gradientCheckpointing?: boolean;
  /** NEFTune's noise on the embeddings; 0, the default, is off. */
  neftuneAlpha?: number;
  /** GPUs only: bytes of device memory the whole run may take, weights included. `auto`, the default: what is free. Too little is `oom` at once. */
  memoryBudget?: 'auto' | number;
  /** GPUs only: the longest micro-batch to come, so that memory is planned before the first step. Without it memory is planned as they come. */
  microBatchTokens?: number;
};

/** What a run on a CPU will take, before anything is loaded. */
export type PlanOptions = {
  /** A folder, of which headers are read, or the text of its config.json and the bytes of its weights as stored: then the weights’ part is within 1 %. */
  model: string | { config: string; weightBytes: number };
  quantize?: 'none' | 'nf4';
  /** As createTrainer gets them. A memory budget that cannot suffice rejects with `oom` and the numbers. */
  trainer: TrainerOptions;
  /** Of the longest micro-batch to come. */
  tokens: number;
};

/** How a run's memory is spent, decided before any of it is taken. `deviceBytes` is exact. */
export type TrainingPlan = {
  budgetBytes: number;
  deviceBytes: number;
  pinnedBytes: number;
  /** Of the longest micro-batch planned for. */
  tokens: number;
  keptLayers: number;
  partlyKeptLayers: number;
  recomputedLayers: number;
  offloadedLayers: number;
  /** Layers whose weights are kept decoded, as bf16. */
  decodedLayers: number;
  embeddingOnDevice: boolean;
  /** Bytes on a CPU, part by part; their sum is `deviceBytes`. Zeros on a GPU. */
  parts: {
    /** The frozen base, as held. */
    weights: number;
    /** Trained values; all weights in full mode. */
    adapter: number;
    gradients: number;
    optimizer: number;
    /** Inputs of layers, kept from the forward to the backward pass. */
    checkpoints: number;
    /** Of the layers that keep theirs. */
    activations: number;
    /** Scratch of one layer or of the loss, whichever takes more. */
    live: number;
    /** A chunk's, where the loss takes more. */
    logits: number;
  };
  /** Every part with its bytes, for people. */
  table: string;
};

/**
 * Packed rows. inputIds and lossMask [T]; rowOffsets [rows + 1]; positions restart at each row.
 * The label of position i is inputIds[i + 1] inside the row, trained on when lossMask[i + 1] is 1.
 */
export type MicroBatch = { inputIds: Uint32Array; lossMask: Uint8Array; rowOffsets: Uint32Array };

export type StepResult = {
  /** This step, from 1. */
  step: number;
  /** Mean over all trainable tokens of all micro-batches. */
  loss: number;
  /** Before clipping. */
  gradNorm: number;
  learningRate: number;
  tokens: number;
  trainableTokens: number;
  /** The gradient was not finite: the weights are as before. */
  skipped: boolean;
  durationMs: number;
  /** Floating-point operations that the step could not do without: its products forward and for gradients, and attention. Nothing computed twice counts. */
  flops: number;
  peakBytes: number;
  /** Of the longest micro-batch so far. */
  plan: TrainingPlan | null;
};

/** One call is one optimizer step; the loop is the caller's. Calls on one trainer run in their order. */
export interface Trainer {
  readonly step: number;
  readonly trainableParameterCount: number;
  /** Where it runs: `cpu:0`, `cuda:1`. */
  readonly device: string;
  /** Device `auto` on a machine with a GPU: what that GPU does not train, so that the CPU does. Else empty. */
  readonly noGpuBecause: string;
  /** Null where memory is planned with the first step. */
  readonly plan: TrainingPlan | null;
  /** The loss is normalised over all trainable tokens of all micro-batches; an abort leaves the state as it was. */
  trainStep(micro: MicroBatch[], signal?: AbortSignal): Promise<StepResult>;
  evaluate(micro: MicroBatch[], signal?: AbortSignal): Promise<{ loss: number; trainableTokens: number }>;
  /**
   * log p of every token but the first of each sequence, with the adapter in `dir` in place of what is trained: where the trainer runs. Nothing of the
   * run changes.
   */
  scoreAdapter(dir: string, sequences: Uint32Array[], signal?: AbortSignal): Promise<Float32Array[]>;
  /** A PEFT folder (LoRA) or a Hugging Face model folder (full). */
  saveAdapter(dir: string, o?: { baseModelName?: string }): Promise<void>;
  /** All that a bit-exact continuation needs. */
  saveCheckpoint(dir: string): Promise<void>;
  /** Refuses another shape or other settings with the reason. */
  restoreCheckpoint(dir: string): Promise<void>;
  /** Gradients of the last step under PEFT's names. */
  saveGradients(path: string): Promise<void>;
  close(): Promise<void>;
}

/** Applied in this order: logit bias, penalties, temperature, top-k, top-p, min-p. */
export type Sampling = {
  /** 0 is greedy. */
  temperature: number;
  /** 1 is off. */
  topP: number;
  /** 0 is off. */
  topK: number;
  /** 0 is off. */
  minP: number;
  /** 1 is off. */
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  seed: bigint;
  maxTokens: number;
  stopTokenIds: number[];
  logitBias?: { tokenId: number; bias: number }[] | undefined;
  /** How many of the most likely tokens to report with each step. */
  logprobs?: number | undefined;
};

/** A deterministic automaton over bytes, with a stack where texts nest; state 0 is the start. */
export type ByteAutomaton = {
  /** [256]: the class of each byte, below `classes`. */
  classOf: Uint8Array;
  classes: number;
  /** [states · classes]: the state after a byte of that class; 2^32 − 1: none; 2^31 + s: s, after putting this state on the stack. */
  next: Uint32Array;
  /** [states]: 1 where a text may end, with nothing on the stack. */
  accepting: Uint8Array;
  stack?: {
    /** [states]: how the innermost bracket's content ended, where it ends with arriving here; 2^32 − 1: it does not. */
    outcomes: Uint32Array;
    /** [states]: how many brackets at least must still be open at once before the innermost can end. */
    heights: Uint32Array;
    /** Threes of numbers, sorted: what is taken off the stack, how the content ended, the state to go on in. */
    returns: Uint32Array;
  };
};

/** The bytes behind a model's tokens, prepared for constraints. */
export interface Vocabulary {
  /** Synchronous and cheap; the tokens of a state are found when the state is first met. Failure `invalid` for a table that is no automaton. */
  createConstraint(automaton: ByteAutomaton): Constraint;
  close(): Promise<void>;
}

/** What an output must look like. Any number of requests may share it. */
export interface Constraint {
  close(): Promise<void>;
}

export type GenerateOptions = {
  /** What the sequence begins with, at least one token. */
  tokens: Uint32Array;
  /** How many of the last `tokens` are output of an earlier call that this one goes on with; penalties count them as output. Default 0. */
  generated?: number | undefined;
  adapter?: Adapter | undefined;
  sampling: Sampling;
  /** Who goes first when not all can run. Default `interactive`. */
  priority?: 'interactive' | 'batch' | 'evaluation' | undefined;
  /**
   * 32 bytes that stand for whatever the cached keys and values depend on besides the tokens, and for whom they are: requests of one scope share the
   * beginnings they have in common. Without it nothing of the request is kept.
   */
  prefixScope?: Uint8Array | undefined;
  /** For the new tokens. */
  constraint?: Constraint | undefined;
  signal?: AbortSignal | undefined;
};

export type GeneratorOptions = {
  /** Sequences at once. Default 64. */
  maxRunning?: number;
  /** Bytes of a GPU's memory, weights included; `auto` (default): what is free. */
  memoryBudget?: number | 'auto';
  /**
   * Whether an answer's bits are the same whatever runs beside it, which a GPU pays for with speed. Default: on the CPU yes, where it costs 5 % of
   * reading prompts; on a GPU no.
   */
  sameForAnyBatch?: boolean | undefined;
  /**
   * How many times larger a step may become while many prompt tokens wait and others' answers advance: prompts are read faster, the answers' tokens come
   * later. Steps grow in powers of two, when what waits would take more than 16 steps, and shrink again. Default 1: never.
   */
  mostStepGrowth?: number | undefined;
};

export type GeneratorInfo = {
  /** Where it runs: `cpu (avx512, 2 threads)`, `cuda:0 (NVIDIA H200, sm_90)`. */
  device: string;
  /** What it took of a GPU's memory, a line for each part; empty on the CPU. */
  memory: string;
  /** Key and value blocks. */
  totalBlocks: number;
};

export type ScoreContinuationOptions = {
  /** At least one token. */
  prompt: Uint32Array;
  /** At least one token; with the prompt no longer than the context. */
  continuation: Uint32Array;
  adapter?: Adapter | undefined;
  /** Default `evaluation`. */
  priority?: GenerateOptions['priority'];
  prefixScope?: Uint8Array | undefined;
  signal?: AbortSignal | undefined;
};

export type CacheChange =
  | {
      kind: 'stored';
      /** Means this block until it is removed; no other ever has the number. */
      node: number;
      /** The block before it; 0: it begins a text. */
      parent: number;
      /** Whose it is: the `prefixScope` of the requests that left it. */
      scope: Uint8Array;
      /** A whole block's, or fewer where a text ends. */
      tokens: Uint32Array;
    }
  | { kind: 'removed'; node: number };

export type CacheWatch = {
  /** Of a whole block. */
  readonly blockTokens: number;
  stop(): void;
};

export type EmbedOptions = {
  /** At least one token, at most the context. */
  tokens: Uint32Array;
  /** `mean` of all tokens' states, or the `last` token's. */
  pooling: 'mean' | 'last';
  adapter?: Adapter | undefined;
  priority?: GenerateOptions['priority'];
  signal?: AbortSignal | undefined;
};

export type ContinuationScore = {
  /** log p of each token of the continuation, given all before it. */
  logprobs: Float32Array;
  /** Tokens of the prompt that did not have to be read. */
  cachedTokens: number;
};

/** How busy a model's generator is. The last four only rise. */
export type GenerationLoad = {
  running: number;
  waiting: number;
  /** Held by sequences. */
  usedBlocks: number;
  totalBlocks: number;
  preempted: number;
  /** Of sequences that began to run. */
  promptTokens: number;
  /** Of these, that the cache held already. */
  cachedTokens: number;
  steps: number;
};

export type GenerateStep = {
  tokenId: number;
  /** From the unmodified distribution. */
  logprob: number;
  /** Tokens of the sequence's beginning that did not have to be read. */
  cachedTokens: number;
  topLogprobs?: { tokenId: number; logprob: number }[];
  /** `stop`: at a stop token. `length`: at `maxTokens` or the context. `complete`: the constraint allows nothing more; this token belongs to the output. */
  finish?: 'stop' | 'length' | 'complete';
};
