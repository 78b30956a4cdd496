import { type Fact, factsIn, type Language, languages } from './facts.ts';
import { fillFrame, framesFor, signFramesFor } from './frames.ts';
import { handWrittenRows } from './hand-written-rows.ts';
import { createRandom, type Random } from './random.ts';
import { directReasoning, signReasoning } from './reasoning.ts';

/**
 * One demonstration row as it stands in the JSONL files. The first three fields are what a dataset takes; the others say
 * how the row is judged, where it comes from and what it is not.
 */
export type DemoRow = {
  readonly Question: string;
  readonly Complex_CoT: string;
  /** Begins with `The answer is <answer>.` or `答案是<answer>。`. */
  readonly Response: string;
  /** The canonical answer, as `exactAnswer` compares it. */
  readonly answer: string;
  /** `<condition or drug>/<relation>`. */
  readonly fact: string;
  readonly language: Language;
  readonly notice: string;
};

/** The two files: rows to train on, and rows to ask afterwards. */
export type DemoRows = { readonly train: readonly DemoRow[]; readonly heldOut: readonly DemoRow[] };

const seed = 3407;
/** Per language. Every held-out fact has a training row in other words; the rest of the training rows are other facts. */
const trainCountPerLanguage = 130;
const heldOutCountPerLanguage = 40;
/** One in so many generated questions names the sign instead of the condition, where the fact allows it. */
const signQuestionEvery = 3;

const notice: Record<Language, string> = {
  en: 'Demonstration data, not medical advice.',
  zh: '演示数据，不是医疗建议。',
};

function response(language: Language, answer: string, explanation: string): string {
  return language === 'en' ? `The answer is ${answer}. ${explanation}` : `答案是${answer}。${explanation}`;
}

function rowOf(fact: Fact, question: string, reasoning: string, explanation: string): DemoRow {
  return {
    Question: question,
    Complex_CoT: reasoning,
    Response: response(fact.language, fact.value, explanation),
    answer: fact.value,
    fact: fact.id,
    language: fact.language,
    notice: notice[fact.language],
  };
}

/** The facts of one language, found by their id. */
type FactIndex = ReadonlyMap<string, Fact>;

function requireFact(facts: FactIndex, id: string): Fact {
  const fact = facts.get(id);
  if (fact === undefined) throw new Error(`there is no fact ${id}`);
  return fact;
}

type Split = 'trainQuestions' | 'heldOutQuestions';

function generateRow(random: Random, facts: FactIndex, fact: Fact, split: Split): DemoRow {
  const signFrames = signFramesFor(fact);
  const viaSign = signFrames !== null && random.below(signQuestionEvery) === 0;
  const questions = viaSign ? signFrames[split] : framesFor(fact)[split];
  const reasoning = viaSign
    ? signReasoning(random, requireFact(facts, fact.id.replace(/\/.*/, '/diagnosis')), fact)
    : directReasoning(random, fact);
  const explanation = fillFrame(random.pick(framesFor(fact).statements), fact);
  return rowOf(fact, fillFrame(random.pick(questions), fact), reasoning, explanation);
}

function rowsIn(language: Language, random: Random): DemoRows {
  const all = factsIn(language);
  const facts: FactIndex = new Map(all.map((fact) => [fact.id, fact]));
  const written = handWrittenRows
    .filter((row) => row.language === language)
    .map((row) => rowOf(requireFact(facts, row.factId), row.question, row.reasoning, row.explanation));
  const asked = random.shuffled(all).slice(0, trainCountPerLanguage - written.length);
  const train = asked.map((fact) => generateRow(random, facts, fact, 'trainQuestions'));
  const heldOut = random
    .shuffled(asked)
    .slice(0, heldOutCountPerLanguage)
    .map((fact) => generateRow(random, facts, fact, 'heldOutQuestions'));
  return { train: [...written, ...train], heldOut };
}

/** Makes every row of the demo; the same ones each time. Languages are mixed in both lists. */
export function generateRows(): DemoRows {
  const random = createRandom(seed);
  const parts = languages.map((language) => rowsIn(language, random));
  return {
    train: random.shuffled(parts.flatMap((part) => part.train)),
    heldOut: random.shuffled(parts.flatMap((part) => part.heldOut)),
  };
}

/** Rows as JSON Lines, one row a line, with a line feed after the last. */
export function rowsToJsonl(rows: readonly DemoRow[]): string {
  return rows.map((row) => `${JSON.stringify(row)}\n`).join('');
}
