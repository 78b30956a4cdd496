import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { goldenDir, readJson } from '../test/fixtures/golden.ts';
import { loadModel } from './engine.ts';
import { readSafetensors } from './files.ts';
import type { GenerateStep, Model, Sampling } from './types.ts';

const greedy: Sampling = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0n,
  maxTokens: 12,
  stopTokenIds: [],
};
const sampled: Sampling = { ...greedy, temperature: 1.2, topK: 20, topP: 0.95, seed: 42n };
const reference = readJson(join(goldenDir('llama3'), 'reference.json')) as { sequences: number[][]; greedy: number[] };
const prompt = Uint32Array.from(reference.sequences[0] as number[]);

let model: Model;
beforeAll(async () => {
  model = await loadModel({ modelDir: goldenDir('llama3'), compute: 'f32' });
});
afterAll(() => model.close());

async function collect(steps: AsyncIterable<GenerateStep>): Promise<GenerateStep[]> {
  const all: GenerateStep[] = [];
  for await (const step of steps) all.push(step);
  return all;
}
const ids = (steps: GenerateStep[]) => steps.map((step) => step.tokenId);

describe('generate', () => {
  it('continues greedily as transformers does', async () => {
    const steps = await collect(model.generate({ tokens: prompt, sampling: greedy }));
    expect(ids(steps)).toEqual(reference.greedy);
    expect(steps.map((step) => step.finish)).toEqual([...Array(11).fill(undefined), 'length']);
  });

  it('reports the log-probabilities that score gives', async () => {
    const steps = await collect(model.generate({ tokens: prompt, sampling: { ...greedy, logprobs: 3 } }));
    const tokens = Uint32Array.from([...prompt, ...ids(steps)]);
    const scores = await model.score({ tokens });
    for (const [i, step] of steps.entries()) {
      expect(step.logprob).toBeCloseTo(scores[prompt.length - 1 + i] as number, 4);
      expect(step.topLogprobs).toHaveLength(3);
      expect(step.topLogprobs?.[0]).toEqual({ tokenId: step.tokenId, logprob: step.logprob });
    }
  });

  it('scores continuations beside generation as score does, reading what they begin with once, and stops when the signal fires', async () => {
    const prefixScope = new Uint8Array(32).fill(3);
    const continuations = [[7], [9, 8, 7], Array.from({ length: 40 }, (_, i) => i + 5)].map((c) => Uint32Array.from(c));
    const generation = collect(model.generate({ tokens: prompt, sampling: greedy }));
    for (const [i, continuation] of continuations.entries()) {
      const { logprobs, cachedTokens } = await model.scoreContinuation({ prompt, continuation, prefixScope });
      const scores = (await model.score({ tokens: Uint32Array.from([...prompt, ...continuation]) })).subarray(
        prompt.length - 1,
      );
      expect(logprobs).toHaveLength(continuation.length);
      for (const [k, logprob] of logprobs.entries())
        expect(Math.abs(logprob - (scores[k] as number))).toBeLessThan(1e-4);
      expect(cachedTokens).toBe(i === 0 ? 0 : prompt.length - 1);
    }
    expect(ids(await generation)).toEqual(reference.greedy);
    const [continuation] = continuations as [Uint32Array];
    await expect(model.scoreContinuation({ prompt, continuation, signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'cancelled',
    });
    for (const bad of [
      { prompt: new Uint32Array() },
      { continuation: new Uint32Array() },
      { continuation: Uint32Array.of(96) },
    ])
      await expect(model.scoreContinuation({ prompt, continuation, ...bad })).rejects.toMatchObject({
        code: 'invalid',
      });
    const stop = new AbortController();
    const late = model.scoreContinuation({ prompt, continuation, signal: stop.signal });
    stop.abort();
    await late.then(
      () => undefined,
      (error: unknown) => expect(error).toMatchObject({ code: 'cancelled' }),
    );
    expect(model.generationLoad()).toMatchObject({ running: 0, usedBlocks: 0 });
  });

  it('pools hidden states to the reference’s vectors beside generation, and stops when the signal fires', async () => {
    const states = (await readSafetensors(join(goldenDir('embeddings'), 'llama3.safetensors'))).get('hidden_0');
    const [length = 0, hidden = 0] = states?.shape ?? [];
    const bytes = states?.data ?? new Uint8Array();
    const values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    const last = values.slice(-hidden);
    const mean = last.map(
      (_, i) => Array.from({ length }, (_, t) => values[t * hidden + i] ?? 0).reduce((a, b) => a + b) / length,
    );
    const generation = collect(model.generate({ tokens: prompt, sampling: greedy }));
    for (const [pooling, expected] of [
      ['mean', mean],
      ['last', last],
    ] as const) {
      const vector = await model.embed({ tokens: prompt, pooling });
      expect(vector).toHaveLength(hidden);
      for (const [i, value] of vector.entries()) expect(Math.abs(value - (expected[i] ?? 0))).toBeLessThan(1e-4);
    }
    expect(ids(await generation)).toEqual(reference.greedy);
    const aborted = model.embed({ tokens: prompt, pooling: 'mean', signal: AbortSignal.abort() });
    await expect(aborted).rejects.toMatchObject({ code: 'cancelled' });
    const stop = new AbortController();
    const long = Uint32Array.from({ length: model.info.contextLength }, () => 5);
    const stopped = Promise.all(
      Array.from({ length: 20 }, () => model.embed({ tokens: long, pooling: 'mean', signal: stop.signal })),
    );
    stop.abort();
    await expect(stopped).rejects.toMatchObject({ code: 'cancelled' });
    await expect(model.embed({ tokens: new Uint32Array(), pooling: 'last' })).rejects.toMatchObject({
      code: 'invalid',
    });
    await vi.waitFor(() => expect(model.generationLoad()).toMatchObject({ running: 0, waiting: 0, usedBlocks: 0 }));
  });

  it('stops at a stop token and reports it', async () => {
    const stop = reference.greedy[4] as number;
    const steps = await collect(model.generate({ tokens: prompt, sampling: { ...greedy, stopTokenIds: [stop] } }));
    expect(steps.at(-1)).toMatchObject({ tokenId: stop, finish: 'stop' });
    expect(steps).toHaveLength(reference.greedy.indexOf(stop) + 1);
  });

  it('gives the same sample for the same seed, and several at once as one after the other', async () => {
    const alone = [];
    for (const seed of [1n, 2n, 3n])
      alone.push(ids(await collect(model.generate({ tokens: prompt, sampling: { ...sampled, seed } }))));
    const together = await Promise.all(
      [1n, 2n, 3n].map(async (seed) =>
        ids(await collect(model.generate({ tokens: prompt, sampling: { ...sampled, seed } }))),
      ),
    );
    expect(together).toEqual(alone);
    expect(new Set(alone.map(String)).size).toBe(3);
  });

  it('throws cancelled before the next token when the signal fires', async () => {
    const controller = new AbortController();
    const seen: number[] = [];
    const iterate = async () => {
      const sampling = { ...greedy, maxTokens: 60 };
      for await (const step of model.generate({ tokens: prompt, sampling, signal: controller.signal })) {
        seen.push(step.tokenId);
        if (seen.length === 3) controller.abort();
      }
    };
    await expect(iterate()).rejects.toMatchObject({ name: 'EngineError', code: 'cancelled' });
    expect(seen).toHaveLength(3);
    await expect(
      collect(model.generate({ tokens: prompt, sampling: greedy, signal: controller.signal })),
    ).rejects.toMatchObject({ code: 'cancelled' });
  });

  it('may be left early, and the engine takes the next request', async () => {
    for await (const step of model.generate({ tokens: prompt, sampling: greedy })) {
      expect(step.tokenId).toBe(reference.greedy[0]);
      break;
    }
    expect(ids(await collect(model.generate({ tokens: prompt, sampling: greedy })))).toEqual(reference.greedy);
  });

  it('gives steps together where they may wait for each other, and none later than asked', async () => {
    const sampling = { ...greedy, maxTokens: 60 };
    const alone = ids(await collect(model.generate({ tokens: prompt, sampling })));
    const batches: GenerateStep[][] = [];
    for await (const batch of model.generateBatches({ tokens: prompt, sampling, gatherMs: 60_000 }))
      batches.push(batch);
    expect(ids(batches.flat())).toEqual(alone);
    // The first goes at once, and so does what follows it, since nothing went before; the rest comes with the end.
    expect(batches.length).toBeLessThan(6);
    const since = performance.now();
    const often: GenerateStep[][] = [];
    for await (const batch of model.generateBatches({ tokens: prompt, sampling, gatherMs: 1 })) often.push(batch);
    expect(ids(often.flat())).toEqual(alone);
    expect(performance.now() - since).toBeLessThan(5_000);
  });

  it('gives each step to who takes them, until that has enough, fails, or the signal fires: then nothing of the request is left', async () => {
    const sampling = { ...greedy, maxTokens: 100 };
    const free = () => expect.poll(() => model.generationLoad()?.running).toBe(0);
    const whole: GenerateStep[] = [];
    await model.generateEach({ tokens: prompt, sampling: greedy }, (steps) => {
      whole.push(...steps);
      return false;
    });
    expect(ids(whole)).toEqual(reference.greedy);

    let calls = 0;
    await model.generateEach({ tokens: prompt, sampling }, () => {
      calls += 1;
      return true;
    });
    await free();
    expect(calls).toBe(1);

    const broken = new Error('broken');
    const failing = model.generateEach({ tokens: prompt, sampling }, () => {
      throw broken;
    });
    await expect(failing).rejects.toBe(broken);
    await free();

    const stop = new AbortController();
    const stopped = model.generateEach({ tokens: prompt, sampling, signal: stop.signal }, () => {
      stop.abort();
      return false;
    });
    await expect(stopped).rejects.toMatchObject({ code: 'cancelled' });
    await free();
  });

  it('refuses what can never run, with the reason', async () => {
    const bad = (value: unknown) => value as never;
    const cases: [string, object][] = [
      ['no tokens', { tokens: new Uint32Array() }],
      ['an unknown id', { tokens: Uint32Array.of(96) }],
      ['another array', { tokens: bad([1, 2]) }],
      ['a prompt longer than the context', { tokens: new Uint32Array(129) }],
      ['a negative temperature', { sampling: { ...greedy, temperature: -1 } }],
      ['a temperature of NaN', { sampling: { ...greedy, temperature: Number.NaN } }],
      ['top-p 0', { sampling: { ...sampled, topP: 0 } }],
      ['no token to make', { sampling: { ...greedy, maxTokens: 0 } }],
      ['a seed that is a number', { sampling: { ...greedy, seed: bad(1) } }],
      ['a seed beyond 64 bits', { sampling: { ...greedy, seed: 1n << 64n } }],
      ['a negative seed', { sampling: { ...greedy, seed: -1n } }],
      ['a bias for an unknown id', { sampling: { ...greedy, logitBias: [{ tokenId: 96, bias: 1 }] } }],
      ['a stop id that is text', { sampling: { ...greedy, stopTokenIds: bad(['2']) } }],
      ['a foreign adapter', { adapter: bad({}) }],
    ];
    for (const [why, change] of cases)
      await expect(collect(model.generate({ tokens: prompt, sampling: greedy, ...change })), why).rejects.toMatchObject(
        {
          name: 'EngineError',
          code: 'invalid',
        },
      );
    expect(ids(await collect(model.generate({ tokens: prompt, sampling: greedy })))).toEqual(reference.greedy);
  });

  it('ends as cancelled when the model is closed', async () => {
    const own = await loadModel({ modelDir: goldenDir('llama3') });
    const generation = collect(own.generate({ tokens: prompt, sampling: { ...greedy, maxTokens: 90 } }));
    const outcome = generation.catch((error: unknown) => error);
    await new Promise((resolve) => setImmediate(resolve));
    await own.close();
    const seen = await outcome;
    if (!Array.isArray(seen)) expect(seen).toMatchObject({ code: 'cancelled' });
    await expect(collect(own.generate({ tokens: prompt, sampling: greedy }))).rejects.toMatchObject({
      code: 'invalid',
    });
  });
});
