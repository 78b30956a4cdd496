import type { Fact, Language } from './facts.ts';
import { fillFrame, framesFor } from './frames.ts';
import type { Random } from './random.ts';

/** A thought around a statement of the fact: `{s}` is its subject, `{v}` its value, `{statement}` the statement. */
const directThoughts: Record<Language, readonly string[]> = {
  en: [
    'The question is about {s}. {statement} So the answer is {v}.',
    'Let me think about {s}. {statement} So it is {v}.',
    'I recall {s}. {statement} That is {v}.',
  ],
  zh: [
    '问题问的是{s}。{statement}答案是{v}。',
    '先想一想{s}。{statement}因此是{v}。',
    '回忆一下{s}。{statement}也就是{v}。',
  ],
};

/** A thought in two steps: from the sign to the condition (`{diagnosis}`), then the statement. */
const signThoughts: Record<Language, readonly string[]> = {
  en: [
    'The sign is {sign}. {diagnosis} {statement} So the answer is {v}.',
    'It starts with {sign}. {diagnosis} {statement} So it is {v}.',
  ],
  zh: ['这里的表现是{sign}。{diagnosis}{statement}答案是{v}。', '从{sign}入手。{diagnosis}{statement}因此是{v}。'],
};

const pickStatement = (random: Random, fact: Fact, boundary: string): string =>
  `${boundary}${fillFrame(random.pick(framesFor(fact).statements), fact, boundary)}${boundary}`;

/** The thought that leads from a question about the subject of `fact` to its value. `boundary` as in `fillFrame`. */
export function directReasoning(random: Random, fact: Fact, boundary = ''): string {
  const frame = random.pick(directThoughts[fact.language]);
  return fillFrame(
    frame.replace('{statement}', () => pickStatement(random, fact, boundary)),
    fact,
    boundary,
  );
}

/** The thought that leads from the sign of `diagnosis` to the condition, and from there to the value of `fact`. */
export function signReasoning(random: Random, diagnosis: Fact, fact: Fact, boundary = ''): string {
  const frame = random
    .pick(signThoughts[fact.language])
    .replace('{diagnosis}', () => pickStatement(random, diagnosis, boundary))
    .replace('{statement}', () => pickStatement(random, fact, boundary));
  return fillFrame(frame, fact, boundary);
}
