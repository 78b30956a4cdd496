import type { MicroBatch, Model, StepResult } from '@medmesh/engine';
import { encodeSegments, type ResolvedTemplate, type TextTokenizer } from '@medmesh/text';
import { type AskDeps, ask } from './ask.ts';
import { demoFineTuning } from './fine-tuning.ts';
import { createRandom } from './random.ts';
import type { DemoRow } from './rows.ts';
import { type ScoredReply, scoreAnswers } from './score.ts';

type TextDeps = { readonly tokenizer: TextTokenizer; readonly template: ResolvedTemplate };

/** A scored reply and the language it was asked in. */
export type LanguageReply = ScoredReply & Pick<DemoRow, 'language'>;

/** Asks every row's question. */
export async function askRows(deps: AskDeps, rows: readonly DemoRow[]): Promise<LanguageReply[]> {
  const replies: LanguageReply[] = [];
  for (const { Question, answer, language } of rows) {
    const reply = await ask(deps, Question);
    replies.push({ response: reply.answer, reasoning: reply.reasoning, answer, language });
  }
  return replies;
}

/** `12 of 80 exact (15.0 %; en 5 of 40, zh 7 of 40); answer mentioned anywhere in 60`. */
export function describeReplies(replies: readonly LanguageReply[]): string {
  const { exact, total, accuracy, mentioned } = scoreAnswers(replies);
  const byLanguage = (['en', 'zh'] as const).map((language) => {
    const part = scoreAnswers(replies.filter((reply) => reply.language === language));
    return `${language} ${part.exact} of ${part.total}`;
  });
  const percent = (100 * accuracy).toFixed(1);
  return `${exact} of ${total} exact (${percent} %; ${byLanguage.join(', ')}); answer mentioned anywhere in ${mentioned}`;
}

/** A row as the formatter makes it: the loss is on the reasoning, the response and the end token. */
async function encodeRow({ tokenizer, template }: TextDeps, row: DemoRow): Promise<MicroBatch> {
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

/** How to fine-tune: the learning rate, the order of the rows, where the adapter goes. */
export type FineTuneOptions = {
  readonly learningRate: number;
  readonly orderSeed: number;
  readonly outDir: string;
  readonly onStep?: (result: StepResult) => void;
};

/** Fine-tunes with the demo's settings straight on the engine and writes a PEFT folder to `outDir`. */
export async function fineTuneOnRows(
  deps: TextDeps & { readonly model: Model },
  rows: readonly DemoRow[],
  options: FineTuneOptions,
): Promise<void> {
  const { steps, gradientAccumulation, warmupSteps, lora, ...optimizer } = demoFineTuning;
  const encoded = await Promise.all(rows.map((row) => encodeRow(deps, row)));
  const order = createRandom(options.orderSeed).shuffled(encoded);
  const trainer = await deps.model.createTrainer({
    ...optimizer,
    method: { kind: 'lora', ...lora, targetModules: [...lora.targetModules] },
    schedule: { kind: 'linear', warmupSteps, totalSteps: steps, learningRate: options.learningRate },
  });
  try {
    for (let step = 0; step < steps; step++) {
      const first = (step * gradientAccumulation) % order.length;
      const result = await trainer.trainStep(order.slice(first, first + gradientAccumulation));
      options.onStep?.(result);
    }
    await trainer.saveAdapter(options.outDir);
  } finally {
    await trainer.close();
  }
}
