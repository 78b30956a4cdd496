import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Adapter, loadModel, type Model } from '@medmesh/engine';
import { writeTinyModel } from '@medmesh/testkit';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { replayProbes } from './replay-probes.ts';

const never = new AbortController().signal;
const threshold = 0.01;
const tokens = Uint32Array.from({ length: 24 }, (_, i) => (7 * i + 3) % 128);

let dir: string;
let model: Model;
let trained: Adapter;
let other: Adapter;
let probes: { tokens: number[]; logprobs: number[] }[];

/** An adapter after a few steps on one made-up row, as its PEFT folder says it. */
async function train(name: string, learningRate: number): Promise<Adapter> {
  const trainer = await model.createTrainer({
    method: { kind: 'lora', rank: 4, alpha: 8, dropout: 0, targetModules: ['q_proj', 'v_proj', 'down_proj'] },
    optimizer: 'adamw',
    weightDecay: 0,
    maxGradNorm: 1,
    schedule: { kind: 'constant', warmupSteps: 0, totalSteps: 4, learningRate },
    seed: 1,
  });
  const row = {
    inputIds: tokens,
    lossMask: new Uint8Array(tokens.length).fill(1),
    rowOffsets: Uint32Array.of(0, tokens.length),
  };
  for (let step = 0; step < 4; step += 1) await trainer.trainStep([row]);
  await trainer.saveAdapter(join(dir, name));
  await trainer.close();
  return model.loadAdapter(join(dir, name));
}

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'medmesh-probes-'));
  writeTinyModel(join(dir, 'base'), { hidden: 64, layers: 2, vocab: 128 });
  model = await loadModel({ modelDir: join(dir, 'base'), quantize: 'nf4' });
  trained = await train('trained', 2e-2);
  other = await train('other', 6e-2);
  const logprobs = await model.score({ tokens, adapter: trained });
  probes = [{ tokens: [...tokens], logprobs: [...logprobs] }];
});

afterAll(async () => {
  await model.close();
  rmSync(dir, { recursive: true, force: true });
});

const replay = (adapter: Adapter, list = probes) =>
  replayProbes(model, adapter, list, threshold, 'projects/p/adapters/a', never);

test('the adapter that was trained passes, with no more difference than another order of sums makes', async () => {
  const parity = await replay(trained);
  expect(parity.tokenCount).toBe(tokens.length - 1);
  expect(parity.maxDifference).toBeLessThan(1e-3);
  expect(parity.meanDifference).toBeLessThanOrEqual(parity.maxDifference);
});

test('another adapter under the same name is refused, and told by how much it differs', async () => {
  await expect(replay(other)).rejects.toMatchObject({
    code: 'failed_precondition',
    reason: 'PARITY_MISMATCH',
    metadata: { mean_difference: expect.any(String) },
  });
});

test('a probe that was tampered with is refused', async () => {
  const tampered = probes.map((probe) => ({ ...probe, logprobs: probe.logprobs.map((value) => value - 0.02) }));
  await expect(replay(trained, tampered)).rejects.toMatchObject({ reason: 'PARITY_MISMATCH' });
});

test('an adapter without probes is refused: nothing proves what it is', async () => {
  await expect(replay(trained, [])).rejects.toMatchObject({ reason: 'PARITY_MISMATCH' });
});
