import type { GenerationLoad } from '@medmesh/engine';
import { createLogger } from '@medmesh/log';
import { createHealth } from '@medmesh/rpc';
import { expect, test } from 'vitest';
import type { Base } from './bases.ts';
import { watchEngine } from './engine-watch.ts';

const idle: GenerationLoad = {
  running: 0,
  waiting: 0,
  usedBlocks: 0,
  totalBlocks: 8,
  preempted: 0,
  promptTokens: 0,
  cachedTokens: 0,
  steps: 5,
};

/** A base whose engine can be made to fail, a clock that is moved by hand, and a real health service. */
function broken() {
  const state = { now: 0, load: idle, logprob: -1, answers: 0, fails: false };
  const model = {
    info: { vocabSize: 10 },
    generationLoad: () => state.load,
    async *generate() {
      await Promise.resolve();
      state.answers += 1;
      if (state.fails) throw new Error('the device is gone');
      yield { tokenId: 3, logprob: state.logprob, cachedTokens: 0 };
    },
  };
  const base = { record: { name: 'projects/p/models/m', digest: 'sha256:0' }, model } as unknown as Base;
  const health = createHealth();
  for (const name of ['', 'ready', 'live']) health.set(name, true);
  const watch = watchEngine({
    bases: () => [base],
    health,
    log: createLogger({ service: 'test', level: 'silent' }),
    now: () => state.now,
    onLoad: () => undefined,
  });
  return { state, health, watch };
}

test('an engine that makes no step for a minute while it has work is not alive, and is again when it moves', async () => {
  const { state, health, watch } = broken();
  state.load = { ...idle, running: 1 };
  await watch.check();
  state.now = 59_000;
  await watch.check();
  expect(health.isServing('live')).toBe(true);
  state.now = 61_000;
  await watch.check();
  expect([health.isServing('live'), health.isServing('ready')]).toEqual([false, false]);
  state.load = { ...state.load, steps: 6 };
  await watch.check();
  expect([health.isServing('live'), health.isServing('ready')]).toEqual([true, true]);
  watch.stop();
});

test('an engine that does nothing because nothing is asked is alive', async () => {
  const { state, health, watch } = broken();
  await watch.check();
  state.now = 3_600_000;
  await watch.check();
  expect(health.isServing('live')).toBe(true);
  watch.stop();
});

test('a known answer that changes or fails ends readiness, and a right one brings it back', async () => {
  const { state, health, watch } = broken();
  await watch.check();
  const step = async (change: Partial<typeof state>) => {
    Object.assign(state, change, { now: state.now + 10_000 });
    await watch.check();
    return [health.isServing('live'), health.isServing('ready'), health.isServing('')];
  };
  expect(await step({ logprob: -1.01 })).toEqual([true, true, true]);
  expect(await step({ logprob: -1.5 })).toEqual([true, false, false]);
  expect(await step({ logprob: -1 })).toEqual([true, true, true]);
  expect(await step({ fails: true })).toEqual([true, false, false]);
  expect(await step({ fails: false })).toEqual([true, true, true]);
  watch.stop();
});

test('a busy engine is not asked: its own requests show that it works', async () => {
  const { state, watch } = broken();
  state.load = { ...idle, running: 2 };
  await watch.check();
  expect(state.answers).toBe(0);
  watch.stop();
});
