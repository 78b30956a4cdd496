// Generation on the CUDA back end compiled for the CPU: the same library but for the device.
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { goldenDir } from '../test/fixtures/golden.ts';
import type { GenerateStep, Sampling } from './types.ts';

const packageDir = join(import.meta.dirname, '..');
// Read once, when devices are first asked for.
process.env['MEDMESH_ENGINE_CUDA_LIBRARY'] = join(packageDir, 'build/release/libengine_cuda_emulated_backend.so');
const { loadModel } = await import('./engine.ts');

const sampling: Sampling = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0n,
  maxTokens: 6,
  stopTokenIds: [],
};

async function collect(steps: AsyncIterable<GenerateStep>): Promise<GenerateStep[]> {
  const list: GenerateStep[] = [];
  for await (const step of steps) list.push(step);
  return list;
}

it('opens a generator on a GPU with a budget, says what it took, and answers with the same bits beside others', async () => {
  const model = await loadModel({ modelDir: goldenDir('qwen3'), device: 'cuda' });
  await expect(model.openGenerator({ memoryBudget: 1_000 })).rejects.toMatchObject({ code: 'oom' });
  const info = await model.openGenerator({ maxRunning: 4, memoryBudget: 512 * 2 ** 20, sameForAnyBatch: true });
  expect(info.device).toMatch(/^cuda:0 \(/);
  expect(info.memory).toContain('keys and values');
  expect(info.totalBlocks).toBeGreaterThan(4);
  await expect(model.openGenerator()).rejects.toMatchObject({ code: 'invalid' });

  const tokens = Uint32Array.of(3, 5, 7, 11);
  const alone = await collect(model.generate({ tokens, sampling }));
  expect(alone).toHaveLength(6);
  const [first, second] = await Promise.all([
    collect(model.generate({ tokens, sampling })),
    collect(model.generate({ tokens: Uint32Array.of(9, 8), sampling: { ...sampling, temperature: 1, logprobs: 2 } })),
  ]);
  expect(first).toEqual(alone);
  expect(second[0]?.topLogprobs).toHaveLength(2);

  const continuation = Uint32Array.of(5, 7, 11);
  const { logprobs } = await model.scoreContinuation({ prompt: tokens.subarray(0, 1), continuation });
  const onCpu = await model.score({ tokens });
  for (const [i, logprob] of logprobs.entries()) expect(Math.abs(logprob - (onCpu[i] as number))).toBeLessThan(0.05);
  expect(model.generationLoad()).toMatchObject({ running: 0, usedBlocks: 0 });
  await model.close();
});

it('serves on a GPU what training makes there: magnitudes, a token table and a head of an adapter’s own, beside none', async () => {
  const model = await loadModel({ modelDir: goldenDir('gemma2'), device: 'cuda' });
  const adapter = await model.loadAdapter(join(goldenDir('adapters'), 'everything', 'adapter'));
  await model.openGenerator({ maxRunning: 4, memoryBudget: 512 * 2 ** 20 });
  const tokens = Uint32Array.of(3, 5, 7, 11, 9);
  const score = async (own?: typeof adapter) => {
    const { logprobs } = await model.scoreContinuation({
      prompt: tokens.subarray(0, 1),
      continuation: tokens.subarray(1),
      adapter: own,
    });
    const onCpu = await model.score({ tokens, adapter: own });
    for (const [i, logprob] of logprobs.entries()) expect(Math.abs(logprob - (onCpu[i] as number))).toBeLessThan(0.05);
    return logprobs;
  };
  const [adapted, plain] = await Promise.all([score(adapter), score()]);
  expect(adapted).not.toEqual(plain);
  await adapter.close();
  await model.close();
});
