// What fine-tuning on the demo rows gains, straight on the engine: `pnpm --filter @medmesh/demo measure-gain`.
// Quantizes the base to NF4, asks the held-out questions, fine-tunes with the demo's settings, asks again.
// Arguments: a learning rate and a seed for the order of the rows, in place of the demo's.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { loadModel } from '@medmesh/engine';
import { loadTokenizer, resolveTemplate } from '@medmesh/text';
import { ask } from './ask.ts';
import { demoFineTuning, demoLearningRate } from './fine-tuning.ts';
import { askRows, describeReplies, fineTuneOnRows } from './gain.ts';
import { demoBaseDir, demoHeldOutPath, demoRowsPath } from './paths.ts';
import { demoQuestions } from './questions.ts';
import { readDemoRows } from './read-rows.ts';

/** Steps between two printed lines. */
const reportEvery = 10;

const learningRate = Number(process.argv[2] ?? demoLearningRate);
const orderSeed = Number(process.argv[3] ?? demoFineTuning.seed);
const heldOut = await readDemoRows(demoHeldOutPath);
const tokenizer = await loadTokenizer(demoBaseDir);
const template = resolveTemplate(undefined, tokenizer);
const workDir = await mkdtemp(path.join(tmpdir(), 'medmesh-adapter-'));
const model = await loadModel({ modelDir: demoBaseDir, quantize: 'nf4' });
try {
  const base = { model, tokenizer, template };
  console.log(`base: ${describeReplies(await askRows(base, heldOut))}`);
  const outDir = path.join(workDir, 'adapter');
  await fineTuneOnRows(base, await readDemoRows(demoRowsPath), {
    learningRate,
    orderSeed,
    outDir,
    onStep: ({ step, loss }) => {
      if (step % reportEvery === 0) console.log(`step ${step}/${demoFineTuning.steps}  loss ${loss.toFixed(3)}`);
    },
  });
  const tuned = { ...base, adapter: await model.loadAdapter(outDir) };
  console.log(`adapter: ${describeReplies(await askRows(tuned, heldOut))}`);
  for (const question of demoQuestions) {
    console.log(`\nquestion: ${question}`);
    console.log('base:', await ask(base, question));
    console.log('adapter:', await ask(tuned, question));
  }
} finally {
  await model.close();
  await rm(workDir, { recursive: true, force: true });
}
