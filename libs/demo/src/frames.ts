import type { Fact, Language, Relation } from './facts.ts';
import { englishFrames, englishSignFrames } from './frames-en.ts';
import { chineseFrames, chineseSignFrames } from './frames-zh.ts';

/**
 * Sentences with gaps for one relation: `{s}` is the fact's subject, `{v}` its value, `{sign}` the sign of the subject.
 * The three sets of questions share no sentence, so what is asked in one place is never met word for word in another.
 */
export type RelationFrames = {
  /** Statements; the corpus and the reasoning of the rows draw on them. */
  readonly statements: readonly string[];
  /** Questions inside the corpus. */
  readonly corpusQuestions: readonly string[];
  /** Questions of the training rows. */
  readonly trainQuestions: readonly string[];
  /** Questions of the held-out rows. */
  readonly heldOutQuestions: readonly string[];
};

/** Questions that name the sign and not the condition, so that answering takes two facts. */
export type SignFrames = Pick<RelationFrames, 'corpusQuestions' | 'trainQuestions' | 'heldOutQuestions'>;

const framesByLanguage: Record<Language, Record<Relation, RelationFrames>> = { en: englishFrames, zh: chineseFrames };
const signFramesByLanguage: Record<Language, Partial<Record<Relation, SignFrames>>> = {
  en: englishSignFrames,
  zh: chineseSignFrames,
};

/** The frames for the relation of `fact`, in its language. */
export function framesFor(fact: Fact): RelationFrames {
  return framesByLanguage[fact.language][fact.relation];
}

/** The frames that ask for `fact` by the sign of its subject, or null where none exist. */
export function signFramesFor(fact: Fact): SignFrames | null {
  return fact.sign === null ? null : (signFramesByLanguage[fact.language][fact.relation] ?? null);
}

const gap = /\{(s|v|sign)\}/g;

function phraseFor(name: string, fact: Fact): string {
  if (name === 's') return fact.subject;
  if (name === 'v') return fact.value;
  if (fact.sign === null) throw new Error(`a frame of ${fact.id} wants a sign and the fact has none`);
  return fact.sign;
}

/**
 * Fills the gaps of `frame` from `fact` and raises the first letter. Chinese has no case, so there nothing changes.
 * `boundary` is set on both sides of each phrase: empty for text, something visible to keep phrase and frame apart.
 */
export function fillFrame(frame: string, fact: Fact, boundary = ''): string {
  const filled = frame.replace(gap, (_, name: string) => `${boundary}${phraseFor(name, fact)}${boundary}`);
  return filled.charAt(0).toUpperCase() + filled.slice(1);
}
