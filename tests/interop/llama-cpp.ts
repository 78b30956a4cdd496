// llama.cpp itself, as npm serves it: a native module for Linux on x64 whose wrapper package is not needed for reading a file.
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

type NativeModel = {
  init(): Promise<boolean>;
  dispose(): Promise<void>;
  tokenize(text: string, specialTokens: boolean): Uint32Array;
  shouldPrependBosToken(): boolean;
};
type NativeContext = {
  init(): Promise<boolean>;
  dispose(): Promise<void>;
  initBatch(tokens: number): void;
  addToBatch(sequence: number, first: number, tokens: Uint32Array, logitsAt: Uint32Array): Uint32Array;
  decodeBatch(): Promise<void>;
  /** The fourth of its results holds all logits: id, logit, id, logit, … */
  sampleToken(
    at: number,
    sampler: object,
    probabilities: boolean,
    confidence: boolean,
    logits: true,
  ): Promise<number[][]>;
};
type NativeModule = {
  setLogger(onLine: (level: number, text: string) => void): void;
  init(): Promise<void>;
  loadBackends(folder?: string): void;
  getGgmlType(name: string): number;
  AddonModel: new (path: string, options: Record<string, unknown>) => NativeModel;
  AddonContext: new (model: NativeModel, options: Record<string, unknown>) => NativeContext;
  AddonSampler: new (model: NativeModel) => { applyConfig(options: { temperature: number }): void; dispose(): void };
};

/** By id, of the whole vocabulary. */
export type Logits = Float32Array;

export type LlamaCpp = {
  /** Logits after each token of a sequence. */
  logits(tokens: Uint32Array): Promise<Logits[]>;
  /** Ids of a text whose special tokens are read as such, without a beginning-of-sequence token. */
  tokenize(text: string): number[];
  readonly addsBos: boolean;
  close(): Promise<void>;
};

const npmName = '@node-llama-cpp/linux-x64';
const require = createRequire(import.meta.url);
const folder = ((): string | undefined => {
  try {
    return join(dirname(require.resolve(npmName)), '..', 'bins', 'linux-x64');
  } catch {
    console.info(`llama.cpp skipped: ${npmName} is not installed, and npm has it for Linux on x64 alone`);
    return undefined;
  }
})();
export const hasLlamaCpp = folder !== undefined;

let loaded: Promise<NativeModule> | undefined;
async function load(): Promise<NativeModule> {
  if (folder === undefined) throw new Error(`${npmName} is not installed`);
  const native = require(join(folder, 'llama-addon.node')) as NativeModule;
  native.setLogger(() => {});
  native.loadBackends();
  native.loadBackends(folder);
  await native.init();
  return native;
}

/** Reads a GGUF file. Keys and values are kept in fp32, as the engine keeps them. */
export async function openLlamaCpp(path: string, contextSize: number): Promise<LlamaCpp> {
  loaded ??= load();
  const native = await loaded;
  const model = new native.AddonModel(path, { addonExports: native, gpuLayers: 0 });
  if (!(await model.init())) throw new Error(`llama.cpp cannot read ${path}`);
  const f32 = native.getGgmlType('F32');
  const context = new native.AddonContext(model, {
    contextSize,
    batchSize: contextSize,
    sequences: 1,
    flashAttention: false,
    threads: 1,
    kvCacheKeyType: f32,
    kvCacheValueType: f32,
  });
  if (!(await context.init())) throw new Error(`llama.cpp gives no context for ${path}`);
  const sampler = new native.AddonSampler(model);
  sampler.applyConfig({ temperature: 0 });
  return {
    logits: async (tokens) => {
      context.initBatch(tokens.length);
      const places = context.addToBatch(0, 0, tokens, Uint32Array.from(tokens.keys()));
      await context.decodeBatch();
      const all: Logits[] = [];
      for (const place of places) {
        const pairs = (await context.sampleToken(place, sampler, false, false, true))[3] ?? [];
        const logits = new Float32Array(pairs.length / 2);
        for (let i = 0; i < pairs.length; i += 2) logits[pairs[i]!] = pairs[i + 1]!;
        all.push(logits);
      }
      return all;
    },
    tokenize: (text) => Array.from(model.tokenize(text, true)),
    addsBos: model.shouldPrependBosToken(),
    close: async () => {
      sampler.dispose();
      await context.dispose();
      await model.dispose();
    },
  };
}
