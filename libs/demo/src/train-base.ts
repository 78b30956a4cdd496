// Trains the demo base from scratch and writes base/: `pnpm --filter @medmesh/demo train-base`.
// Run train-tokenizer first if the tokenizer changed. The same engine build and instruction set give the same bytes.

import { createHash } from 'node:crypto';
import { copyFile, cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { engineVersion, listDevices, loadModel, type StepResult, type Trainer } from '@medmesh/engine';
import { loadTokenizer, type TextTokenizer } from '@medmesh/text';
import { baseConfig, baseCorpusSeed, baseGenerationConfig, baseRecipe } from './base-recipe.ts';
import { writeInitialWeights } from './initial-weights.ts';
import { demoBaseDir } from './paths.ts';
import { packRows, pretrainingRows } from './pretraining-rows.ts';
import { createRandom } from './random.ts';

const weightsName = 'model.safetensors';
/** Steps between two printed lines. */
const reportEvery = 25;
/** Rows of the evaluation corpus: sentences the base has not been trained on, over the facts that it has. */
const evaluationRowCount = 40;

async function writeJson(name: string, value: object): Promise<void> {
  await writeFile(path.join(demoBaseDir, name), `${JSON.stringify(value, null, 2)}\n`);
}

async function sha256(file: string): Promise<string> {
  return `sha256:${createHash('sha256')
    .update(await readFile(file))
    .digest('hex')}`;
}

function report(result: StepResult, startedMs: number): void {
  const elapsedSeconds = (performance.now() - startedMs) / 1000;
  const leftSeconds = (elapsedSeconds / result.step) * (baseRecipe.steps - result.step);
  const tokensPerSecond = (result.step * result.tokens) / elapsedSeconds;
  console.log(
    `step ${result.step}/${baseRecipe.steps}  loss ${result.loss.toFixed(4)}  ` +
      `${tokensPerSecond.toFixed(0)} tok/s  ${leftSeconds.toFixed(0)} s left`,
  );
}

/** The training loop. Returns the loss of every `reportEvery`th step. */
async function train(trainer: Trainer, tokenizer: TextTokenizer): Promise<{ step: number; loss: number }[]> {
  const { steps, rowsPerStep, tokensPerRow, seed } = baseRecipe;
  const corpus = { seed: baseCorpusSeed, rowCount: steps * rowsPerStep, tokensPerRow };
  const rows = createRandom(seed).shuffled(await pretrainingRows(tokenizer, corpus));
  const startedMs = performance.now();
  const losses: { step: number; loss: number }[] = [];
  for (let first = 0; first < rows.length; first += rowsPerStep) {
    const result = await trainer.trainStep([packRows(rows.slice(first, first + rowsPerStep))]);
    if (result.skipped) throw new Error(`step ${result.step}: the gradient is not finite`);
    if (result.step % reportEvery !== 0 && result.step !== steps) continue;
    report(result, startedMs);
    losses.push({ step: result.step, loss: Number(result.loss.toFixed(4)) });
  }
  return losses;
}

async function trainBase(workDir: string): Promise<void> {
  await writeJson('config.json', baseConfig);
  await writeJson('generation_config.json', baseGenerationConfig);
  const initialDir = path.join(workDir, 'initial');
  const trainedDir = path.join(workDir, 'trained');
  await cp(demoBaseDir, initialDir, { recursive: true, filter: (source) => path.basename(source) !== weightsName });
  await writeInitialWeights(path.join(initialDir, weightsName), baseRecipe.seed);

  const { seed, steps, tokensPerRow, rowsPerStep, schedule, warmupSteps, learningRate, compute, ...rest } = baseRecipe;
  const tokenizer = await loadTokenizer(demoBaseDir);
  const model = await loadModel({ modelDir: initialDir, compute });
  try {
    const trainer = await model.createTrainer({
      ...rest,
      method: { kind: 'full' },
      schedule: { kind: schedule, warmupSteps, totalSteps: steps, learningRate },
      seed,
      gradientCheckpointing: false,
    });
    const losses = await train(trainer, tokenizer);
    const unseen = { seed: baseCorpusSeed + 1, rowCount: evaluationRowCount, tokensPerRow };
    const evaluation = await trainer.evaluate([packRows(await pretrainingRows(tokenizer, unseen))]);
    await trainer.saveAdapter(trainedDir);
    await copyFile(path.join(trainedDir, weightsName), path.join(demoBaseDir, weightsName));
    await writeJson('base.json', {
      notice: 'Demonstration model, not medical advice.',
      recipe: baseRecipe,
      corpusSeed: baseCorpusSeed,
      parameters: model.info.parameterCount,
      tokens: steps * rowsPerStep * tokensPerRow,
      engine: engineVersion,
      isa: listDevices().find((device) => device.kind === 'cpu')?.isa,
      tokenizer: await sha256(path.join(demoBaseDir, 'tokenizer.json')),
      weights: await sha256(path.join(demoBaseDir, weightsName)),
      evaluationLoss: Number(evaluation.loss.toFixed(4)),
      losses,
    });
    console.log(`loss on unseen sentences ${evaluation.loss.toFixed(4)}; base written to ${demoBaseDir}`);
  } finally {
    await model.close();
  }
}

const workDir = await mkdtemp(path.join(tmpdir(), 'medmesh-train-base-'));
try {
  await trainBase(workDir);
} finally {
  await rm(workDir, { recursive: true, force: true });
}
