// What fine-tuning on the demo rows gains, straight on the engine: `pnpm --filter @medmesh/demo measure-gain`.
// Quantizes the base to NF4, asks the held-out questions, fine-tunes with the demo's settings, asks again.
// An argument replaces the learning rate.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type Adapter, loadModel, type MicroBatch, type Model } from '@medmesh/engine';
import { createReasoningSplitter, encodeSegments, loadTokenizer, resolveTemplate } from '@medmesh/text';
import { demoFineTuning, demoLearningRate } from './fine-tuning.ts';
import { demoBaseDir, demoHeldOutPath, demoRowsPath } from './paths.ts';
import { demoQuestions } from './questions.ts';
import { createRandom } from './random.ts';
import { readDemoRows } from './read-rows.ts';
import type { DemoRow } from './rows.ts';
import { type ScoredReply, scoreAnswers } from './score.ts';

/** Longer than any reasoning and answer of the rows. */
const maxReplyTokens = 160;

const tokenizer = await loadTokenizer(demoBaseDir);
const template = resolveTemplate(undefined, tokenizer);

/** Greedy reply to one question, split at the end of the reasoning. */
async function ask(model: Model, question: string, adapter?: Adapter): Promise<{ reasoning: string; answer: string }> {
  const prompt = template.renderPrompt({ question });
  const [encoded] = await encodeSegments(tokenizer, [prompt.segments]);
  if (encoded === undefined) throw new Error('the prompt was not encoded');
  const ids: number[] = [];
  const sampling = {
    temperature: 0,
    topP: 1,
    topK: 0,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    seed: 0n,
    maxTokens: maxReplyTokens,
    stopTokenIds: [...template.stopTokenIds],
  };
  for await (const { tokenId } of model.generate({ tokens: encoded.ids, adapter, sampling })) ids.push(tokenId);
  const text = tokenizer.decode(ids.filter((id) => !template.stopTokenIds.includes(id)));
  const splitter = createReasoningSplitter(prompt.startsInsideThink);
  const parts = [...splitter.push(text), ...splitter.flush()];
  const channel = (name: 'reasoning' | 'answer'): string =>
    parts.map((part) => (part.channel === name ? part.text : '')).join('');
  return { reasoning: channel('reasoning'), answer: channel('answer') };
}

async function measure(label: string, model: Model, rows: readonly DemoRow[], adapter?: Adapter): Promise<void> {
  const replies: (ScoredReply & { language: string })[] = [];
  for (const { Question, answer, language } of rows) {
    const reply = await ask(model, Question, adapter);
    replies.push({ response: reply.answer, reasoning: reply.reasoning, answer, language });
  }
  const score = scoreAnswers(replies);
  const byLanguage = ['en', 'zh'].map((language) => {
    const part = scoreAnswers(replies.filter((reply) => reply.language === language));
    return `${language} ${part.exact} of ${part.total}`;
  });
  console.log(
    `${label}: ${score.exact} of ${score.total} exact (${(100 * score.accuracy).toFixed(1)} %; ${byLanguage.join(', ')}); ` +
      `answer mentioned anywhere in ${score.mentioned}`,
  );
}

/** One row as the formatter makes it: the loss is on the reasoning, the response and the end token. */
async function encodeRow(row: DemoRow): Promise<MicroBatch> {
  const example = template.renderExample({
    shape: 'reasoning',
    question: row.Question,
    reasoning: row.Complex_CoT,
    response: row.Response,
  });
  const [encoded] = await encodeSegments(tokenizer, [example]);
  if (encoded === undefined) throw new Error('a row was not encoded');
  const lossMask = new Uint8Array(encoded.ids.length);
  for (const span of encoded.spans) if (span.kind !== 'prompt') lossMask.fill(1, span.start, span.end);
  return { inputIds: encoded.ids, lossMask, rowOffsets: Uint32Array.of(0, encoded.ids.length) };
}

async function fineTune(model: Model, rows: readonly DemoRow[], learningRate: number, outDir: string): Promise<void> {
  const { steps, gradientAccumulation, warmupSteps, seed, lora, ...optimizer } = demoFineTuning;
  const order = createRandom(seed).shuffled(await Promise.all(rows.map(encodeRow)));
  const trainer = await model.createTrainer({
    method: { kind: 'lora', ...lora, targetModules: [...lora.targetModules] },
    ...optimizer,
    schedule: { kind: 'linear', warmupSteps, totalSteps: steps, learningRate },
    seed,
  });
  for (let step = 0; step < steps; step++) {
    const first = (step * gradientAccumulation) % order.length;
    const { loss } = await trainer.trainStep(order.slice(first, first + gradientAccumulation));
    if ((step + 1) % 10 === 0) console.log(`step ${step + 1}/${steps}  loss ${loss.toFixed(3)}`);
  }
  await trainer.saveAdapter(outDir);
  await trainer.close();
}

const learningRate = Number(process.argv[2] ?? demoLearningRate);
const heldOut = await readDemoRows(demoHeldOutPath);
const adapterDir = await mkdtemp(path.join(tmpdir(), 'medmesh-adapter-'));
const model = await loadModel({ modelDir: demoBaseDir, quantize: 'nf4' });
try {
  await measure('base', model, heldOut);
  const outDir = path.join(adapterDir, 'adapter');
  await fineTune(model, await readDemoRows(demoRowsPath), learningRate, outDir);
  const adapter = await model.loadAdapter(outDir);
  await measure('adapter', model, heldOut, adapter);
  for (const question of demoQuestions) {
    console.log(`\nquestion: ${question}`);
    console.log('base:', await ask(model, question));
    console.log('adapter:', await ask(model, question, adapter));
  }
} finally {
  await model.close();
  await rm(adapterDir, { recursive: true, force: true });
}
