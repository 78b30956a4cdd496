import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { goldenDir, pack, sharedDir, someRows, temporaryDir } from '../test/fixtures/golden.ts';
import { loadModel } from './engine.ts';
import type { Model, Trainer, TrainerOptions } from './types.ts';

const options: TrainerOptions = {
  method: { kind: 'lora', rank: 2, alpha: 4, dropout: 0, targetModules: ['q_proj'] },
  optimizer: 'adamw',
  weightDecay: 0,
  maxGradNorm: 0,
  schedule: { kind: 'constant', warmupSteps: 0, totalSteps: 10, learningRate: 1e-3 },
  seed: 0,
};
const bad = (value: unknown) => value as never;
const invalid = { name: 'EngineError', code: 'invalid' };

let model: Model;
let trainer: Trainer;
let temp: ReturnType<typeof temporaryDir>;
beforeAll(async () => {
  model = await loadModel({ modelDir: goldenDir('llama3') });
  trainer = await model.createTrainer(options);
});
afterAll(() => model.close());
beforeEach(() => {
  temp = temporaryDir();
});
afterEach(() => temp.remove());

describe('malformed input is refused and the engine goes on', () => {
  it('rejects micro-batches that are not what they must be', async () => {
    const good = pack([[1, 2, 3, 4, 5]], 1);
    const u32 = (...values: number[]) => Uint32Array.from(values);
    const cases: [string, unknown][] = [
      ['no array', good],
      ['no micro-batch', []],
      ['null', [null]],
      ['a missing field', [{ inputIds: good.inputIds, lossMask: good.lossMask }]],
      ['plain arrays', [{ inputIds: [1, 2, 3, 4, 5], lossMask: [0, 1, 1, 1, 1], rowOffsets: [0, 5] }]],
      ['another element type', [{ ...good, inputIds: Float32Array.of(1, 2, 3, 4, 5) }]],
      ['signed ids', [{ ...good, inputIds: Int32Array.of(1, 2, 3, 4, -5) }]],
      ['a mask that is too short', [{ ...good, lossMask: Uint8Array.of(0, 1) }]],
      ['a mask of another value', [{ ...good, lossMask: Uint8Array.of(0, 1, 2, 1, 1) }]],
      ['an id of the vocabulary size', [{ ...good, inputIds: u32(1, 2, 3, 4, 96) }]],
      ['an id of 2^32 - 1', [{ ...good, inputIds: u32(1, 2, 3, 4, 0xffffffff) }]],
      ['offsets that fall', [{ ...good, rowOffsets: u32(0, 4, 2, 5) }]],
      ['offsets that repeat', [{ ...good, rowOffsets: u32(0, 2, 2, 5) }]],
      ['offsets that start late', [{ ...good, rowOffsets: u32(1, 5) }]],
      ['offsets that end early', [{ ...good, rowOffsets: u32(0, 4) }]],
      ['offsets past the end', [{ ...good, rowOffsets: u32(0, 6) }]],
      ['no offsets', [{ ...good, rowOffsets: u32() }]],
      ['nothing to train on', [pack([[1, 2, 3]], 3)]],
      ['empty arrays', [{ inputIds: u32(), lossMask: new Uint8Array(), rowOffsets: u32(0) }]],
    ];
    for (const [why, micro] of cases) await expect(trainer.trainStep(bad(micro)), why).rejects.toMatchObject(invalid);
    expect(trainer.step).toBe(0);
    expect((await trainer.evaluate([good])).trainableTokens).toBe(4);
  });

  it('rejects a detached array', async () => {
    const micro = pack([[1, 2, 3]], 0);
    structuredClone(micro.inputIds.buffer, { transfer: [micro.inputIds.buffer as ArrayBuffer] });
    await expect(trainer.trainStep([micro])).rejects.toMatchObject(invalid);
  });

  it('takes arrays over shared memory and over a part of a buffer', async () => {
    const row = someRows(1, 6, 96)[0] as number[];
    const plain = pack([row], 0);
    const shared = new Uint32Array(new SharedArrayBuffer(24));
    shared.set(row);
    const part = Uint32Array.from([7, 7, ...row]).subarray(2);
    const expected = await trainer.evaluate([plain]);
    expect(await trainer.evaluate([{ ...plain, inputIds: shared }])).toEqual(expected);
    expect(await trainer.evaluate([{ ...plain, inputIds: part }])).toEqual(expected);
  });

  it('rejects trainer options out of their range', async () => {
    const lora = options.method as {
      kind: 'lora';
      rank: number;
      alpha: number;
      dropout: number;
      targetModules: string[];
    };
    const cases: [string, unknown][] = [
      ['null', null],
      ['rank 0', { ...options, method: { ...lora, rank: 0 } }],
      ['a rank of 1.5', { ...options, method: { ...lora, rank: 1.5 } }],
      ['a rank of a million', { ...options, method: { ...lora, rank: 1_000_000 } }],
      ['alpha NaN', { ...options, method: { ...lora, alpha: Number.NaN } }],
      ['dropout 1', { ...options, method: { ...lora, dropout: 1 } }],
      ['no target', { ...options, method: { ...lora, targetModules: [] } }],
      ['an unknown target', { ...options, method: { ...lora, targetModules: ['q_proj', 'w_proj'] } }],
      ['a target twice', { ...options, method: { ...lora, targetModules: ['q_proj', 'q_proj'] } }],
      ['an unknown whole module', { ...options, method: { ...lora, modulesToSave: ['norm'] } }],
      ['a layer that is no number', { ...options, method: { ...lora, layers: [0.5] } }],
      ['a layer the model does not have', { ...options, method: { ...lora, layers: [99] } }],
      ['layers out of order', { ...options, method: { ...lora, layers: [1, 0] } }],
      ['a budget below the weights', { ...options, memoryBudget: 1000 }],
      ['an unknown method', { ...options, method: { kind: 'dora' } }],
      ['an unknown optimizer', { ...options, optimizer: 'sgd' }],
      ['beta 1', { ...options, beta1: 1 }],
      ['a negative epsilon', { ...options, epsilon: -1 }],
      ['an infinite decay', { ...options, weightDecay: Number.POSITIVE_INFINITY }],
      ['an unknown schedule', { ...options, schedule: { ...options.schedule, kind: 'step' } }],
      ['no steps', { ...options, schedule: { ...options.schedule, totalSteps: 0 } }],
      ['a negative seed', { ...options, seed: -1 }],
    ];
    for (const [why, value] of cases)
      await expect(model.createTrainer(bad(value)), why).rejects.toMatchObject({
        name: why === 'null' ? 'TypeError' : 'EngineError',
      });
  });

  it('rejects tokens the model does not have', async () => {
    await expect(model.score({ tokens: Uint32Array.of(1, 96) })).rejects.toMatchObject(invalid);
    await expect(model.score({ tokens: Uint32Array.of(1) })).rejects.toMatchObject(invalid);
    await expect(model.logits({ tokens: new Uint32Array() })).rejects.toMatchObject(invalid);
    await expect(model.score({ tokens: bad([1, 2]) })).rejects.toMatchObject(invalid);
    await expect(model.score({ tokens: Uint32Array.of(1, 2), adapter: bad({}) })).rejects.toMatchObject(invalid);
  });

  it('rejects load options it does not know', async () => {
    const modelDir = goldenDir('llama3');
    await expect(loadModel({ modelDir, compute: bad('f16') })).rejects.toMatchObject(invalid);
    await expect(loadModel({ modelDir, quantize: bad('int8') })).rejects.toMatchObject(invalid);
    await expect(loadModel({ modelDir, threads: -1 })).rejects.toMatchObject(invalid);
    await expect(loadModel({ modelDir, device: 'cuda:7' })).rejects.toMatchObject({ code: 'unsupported' });
    await expect(loadModel({ modelDir: join(temp.dir, 'absent') })).rejects.toMatchObject({ code: 'io' });
  });

  it('stops loading when the signal fires', async () => {
    const controller = new AbortController();
    const loading = loadModel({ modelDir: goldenDir('llama3'), quantize: 'nf4', signal: controller.signal });
    controller.abort();
    await expect(loading).rejects.toMatchObject({ code: 'cancelled' });
  });

  const other = sharedDir('golden', 'qwen2_untied', 'adapter_init');
  it.skipIf(!other)('refuses an adapter of another base', async () => {
    await expect(model.loadAdapter(other as string)).rejects.toMatchObject({
      code: expect.stringMatching(/corrupt|unsupported/),
    });
  });
});

describe('closing', () => {
  it('is an error the second time, and so is any use after it', async () => {
    const own = await loadModel({ modelDir: goldenDir('llama3') });
    const ownTrainer = await own.createTrainer(options);
    await ownTrainer.close();
    await expect(ownTrainer.close()).rejects.toMatchObject({
      ...invalid,
      message: expect.stringContaining('already closed'),
    });
    await expect(ownTrainer.trainStep([pack([[1, 2]], 0)])).rejects.toMatchObject(invalid);
    await own.close();
    await expect(own.close()).rejects.toMatchObject(invalid);
    await expect(own.score({ tokens: Uint32Array.of(1, 2) })).rejects.toMatchObject(invalid);
    await expect(own.createTrainer(options)).rejects.toMatchObject(invalid);
  });

  it('cancels the work in progress of the model and what depends on it', async () => {
    const own = await loadModel({ modelDir: goldenDir('llama3') });
    const ownTrainer = await own.createTrainer(options);
    const long = Array.from({ length: 200 }, (_, i) => pack(someRows(8, 64, 96, i), 1));
    const step = ownTrainer.trainStep(long);
    const queued = ownTrainer.trainStep(long);
    const [first, second] = await Promise.all([
      step.catch((error: unknown) => error),
      queued.catch((error: unknown) => error),
      own.close(),
    ]);
    expect(first).toMatchObject({ code: 'cancelled' });
    expect(second).toMatchObject({ code: 'cancelled' });
    await expect(ownTrainer.trainStep(long)).rejects.toMatchObject({
      ...invalid,
      message: expect.stringContaining('closed'),
    });
  });

  it('a worker thread can end while it trains', async () => {
    const source = `
      const { loadModel } = await import(${JSON.stringify(join(import.meta.dirname, 'index.ts'))});
      const { parentPort } = await import('node:worker_threads');
      const model = await loadModel({ modelDir: ${JSON.stringify(goldenDir('llama3'))} });
      const trainer = await model.createTrainer(${JSON.stringify(options)});
      const row = Uint32Array.from({ length: 512 }, (_, i) => i % 96);
      const micro = { inputIds: row, lossMask: new Uint8Array(512).fill(1), rowOffsets: Uint32Array.of(0, 512) };
      parentPort.postMessage('training');
      for (;;) await trainer.trainStep(Array(100).fill(micro));
    `;
    const worker = new Worker(source, { eval: true, execArgv: ['--input-type=module'] });
    await new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    await new Promise((resolve) => setTimeout(resolve, 50));
    await worker.terminate();
    expect((await model.score({ tokens: Uint32Array.of(1, 2, 3) })).length).toBe(2);
  });

  it('forgotten handles are collected without a crash', async () => {
    const forget = async () => {
      const own = await loadModel({ modelDir: goldenDir('llama3') });
      const ownTrainer = await own.createTrainer(options);
      void ownTrainer.trainStep([pack(someRows(4, 32, 96), 1)]);
    };
    for (let i = 0; i < 5; i++) await forget();
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    for (let i = 0; i < 3; i++) {
      collect();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    expect((await model.score({ tokens: Uint32Array.of(1, 2, 3) })).length).toBe(2);
  });
});
