import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { inspectModel, inspectSafetensors, loadModel } from '@medmesh/engine';
import { loadTokenizer, resolveTemplate } from '@medmesh/text';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { baseConfig, baseCorpusSeed, baseGenerationConfig, baseRecipe } from './base-recipe.ts';
import { demoLearningRate } from './fine-tuning.ts';
import { askRows, fineTuneOnRows } from './gain.ts';
import { writeInitialWeights } from './initial-weights.ts';
import { demoBaseDir, demoHeldOutPath, demoRowsPath } from './paths.ts';
import { packRows, pretrainingRows } from './pretraining-rows.ts';
import { readDemoRows } from './read-rows.ts';
import { scoreAnswers } from './score.ts';

const inBase = (name: string) => path.join(demoBaseDir, name);
const sha256 = async (name: string) =>
  `sha256:${createHash('sha256')
    .update(await readFile(inBase(name)))
    .digest('hex')}`;

let workDir: string;
beforeAll(async () => {
  workDir = await mkdtemp(path.join(tmpdir(), 'medmesh-demo-'));
});
afterAll(() => rm(workDir, { recursive: true, force: true }));

describe('the committed base', () => {
  it('is what its record says: recipe, tokenizer and weights', async () => {
    const record = JSON.parse(await readFile(inBase('base.json'), 'utf8')) as Record<string, unknown>;
    expect(record).toMatchObject({
      recipe: baseRecipe,
      corpusSeed: baseCorpusSeed,
      tokenizer: await sha256('tokenizer.json'),
      weights: await sha256('model.safetensors'),
      tokens: baseRecipe.steps * baseRecipe.rowsPerStep * baseRecipe.tokensPerRow,
    });
    expect(JSON.parse(await readFile(inBase('config.json'), 'utf8'))).toEqual(baseConfig);
    expect(JSON.parse(await readFile(inBase('generation_config.json'), 'utf8'))).toEqual(baseGenerationConfig);
  });

  it('is a small Qwen2 model in bf16 that fits its config', async () => {
    const info = await inspectModel(demoBaseDir);
    expect(info).toMatchObject({ modelType: 'qwen2', storedDtype: 'bf16', tied: true, quantization: 'none' });
    expect(info.parameterCount).toBeLessThan(4e6);
    expect((await stat(inBase('model.safetensors'))).size).toBeLessThanOrEqual(8e6);
  });

  it('predicts sentences it was not trained on far better than it could by chance', async () => {
    const tokenizer = await loadTokenizer(demoBaseDir);
    const rows = await pretrainingRows(tokenizer, { seed: baseCorpusSeed + 1, rowCount: 2, tokensPerRow: 256 });
    const model = await loadModel({ modelDir: demoBaseDir });
    try {
      const logProbabilities = await Promise.all(rows.map((tokens) => model.score({ tokens })));
      const values = logProbabilities.flatMap((row) => [...row]);
      const loss = -values.reduce((sum, value) => sum + value, 0) / values.length;
      expect(loss).toBeLessThan(0.8);
      expect(loss).toBeLessThan(Math.log(baseConfig.vocab_size) / 8);
    } finally {
      await model.close();
    }
  });
});

describe('fine-tuning on the demo rows', () => {
  it('raises exact answers on held-out questions from none or nearly none to well over 40 %', async () => {
    const heldOut = await readDemoRows(demoHeldOutPath);
    const tokenizer = await loadTokenizer(demoBaseDir);
    const model = await loadModel({ modelDir: demoBaseDir, quantize: 'nf4' });
    try {
      const base = { model, tokenizer, template: resolveTemplate(undefined, tokenizer) };
      expect(scoreAnswers(await askRows(base, heldOut)).accuracy).toBeLessThanOrEqual(0.1);
      const outDir = path.join(workDir, 'adapter');
      const rows = await readDemoRows(demoRowsPath);
      await fineTuneOnRows(base, rows, { learningRate: demoLearningRate, orderSeed: 1, outDir });
      const tuned = { ...base, adapter: await model.loadAdapter(outDir) };
      expect(scoreAnswers(await askRows(tuned, heldOut)).accuracy).toBeGreaterThan(0.4);
    } finally {
      await model.close();
    }
  }, 240_000);
});

describe('training a base', () => {
  it('starts from weights that the engine accepts, the same for the same seed', async () => {
    const [first, second, other] = ['first', 'second', 'other'].map((name) =>
      path.join(workDir, `${name}.safetensors`),
    );
    await writeInitialWeights(first!, 1);
    await writeInitialWeights(second!, 1);
    await writeInitialWeights(other!, 2);
    const bytes = await readFile(first!);
    expect(bytes.equals(await readFile(second!))).toBe(true);
    expect(bytes.equals(await readFile(other!))).toBe(false);
    const written = await inspectSafetensors(first!);
    const trained = await inspectSafetensors(inBase('model.safetensors'));
    const shapes = (tensors: typeof written.tensors) =>
      new Map(tensors.map(({ name, dtype, shape }) => [name, `${dtype} ${shape.join('x')}`]));
    expect(shapes(written.tensors)).toEqual(shapes(trained.tensors));
  });

  it('cuts the corpus into full rows, each document closed by the end-of-text token', async () => {
    const tokenizer = await loadTokenizer(demoBaseDir);
    const rows = await pretrainingRows(tokenizer, { seed: 5, rowCount: 12, tokensPerRow: 64 });
    expect(rows.map((row) => row.length)).toEqual(Array.from({ length: 12 }, () => 64));
    const ids = rows.flatMap((row) => [...row]);
    const documents = tokenizer.decode(ids.slice(0, ids.lastIndexOf(tokenizer.eosTokenId))).split('<|endoftext|>');
    expect(documents.length).toBeGreaterThan(4);
    const packed = packRows(rows);
    expect([...packed.rowOffsets]).toEqual(Array.from({ length: 13 }, (_, row) => row * 64));
    expect([...packed.inputIds]).toEqual(ids);
  });
});
