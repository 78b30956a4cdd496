import { describe, expect, it } from 'vitest';
import { conditions } from './conditions.ts';
import { generateCorpus } from './corpus.ts';
import { drugs } from './drugs.ts';
import { factsIn, languages } from './facts.ts';
import { framesFor, signFramesFor } from './frames.ts';

const some = (seed: number, documentCount = 3000) => [...generateCorpus({ seed, documentCount })];

describe('the facts', () => {
  it('have one id each, across conditions and drugs', () => {
    const ids = [...conditions, ...drugs].map((entry) => entry.id);
    expect(new Set(ids).size).toBe(ids.length);
  });

  it('give every sign and every name to one condition only, so that a diagnosis is certain', () => {
    for (const language of languages) {
      for (const field of [0, 1] as const) {
        const phrases = conditions.map((entry) => entry[language][field]);
        expect(new Set(phrases).size).toBe(phrases.length);
      }
    }
  });

  it('are phrases that stand in the middle of a sentence: no full stop, no line feed, no gap mark, NFC', () => {
    for (const { subject, value } of languages.flatMap(factsIn)) {
      for (const phrase of [subject, value]) {
        expect(phrase).toMatch(/^[^.。\n{}]+$/u);
        expect(phrase).toBe(phrase.normalize('NFC').trim());
      }
    }
  });

  it('say the same in both languages: the same relations of the same topics', () => {
    expect(factsIn('zh').map((fact) => fact.id)).toEqual(factsIn('en').map((fact) => fact.id));
  });
});

describe('the corpus', () => {
  it('is the same for the same seed and another for another', () => {
    expect(some(7)).toEqual(some(7));
    expect(some(7)).not.toEqual(some(8));
  });

  it('begins a longer corpus as it begins a shorter one', () => {
    expect(some(7, 3000).slice(0, 100)).toEqual(some(7, 100));
  });

  it('states every fact in both languages', () => {
    const text = { en: '', zh: '' };
    for (const document of some(1, 20_000)) text[document.language] += `${document.text}\n`;
    const missing = languages
      .flatMap(factsIn)
      .filter((fact) => !framesFor(fact).statements.some((frame) => text[fact.language].includes(filled(frame, fact))));
    expect(missing.map((fact) => `${fact.language} ${fact.id}`)).toEqual([]);
  });

  it('holds neither the fine-tuning prompt nor a fact between think tags nor a response of the rows', () => {
    const values = languages.flatMap(factsIn).map((fact) => fact.value);
    for (const { text } of some(1, 6000)) {
      expect(text).not.toContain('### Instruction');
      expect(text).not.toMatch(/<\/think>\s*(?:The answer is|答案是)/u);
      const thought = /<think>(.*)<\/think>/su.exec(text)?.[1] ?? '';
      expect(values.filter((value) => value.length > 6 && thought.includes(value))).toEqual([]);
    }
  });
});

describe('the frames', () => {
  it('ask the corpus, the training rows and the held-out rows different questions', () => {
    for (const fact of languages.flatMap(factsIn)) {
      const bySign = signFramesFor(fact);
      const frames = framesFor(fact);
      const questions = [
        ...frames.corpusQuestions,
        ...frames.trainQuestions,
        ...frames.heldOutQuestions,
        ...(bySign?.corpusQuestions ?? []),
        ...(bySign?.trainQuestions ?? []),
        ...(bySign?.heldOutQuestions ?? []),
      ];
      expect(new Set(questions).size).toBe(questions.length);
    }
  });
});

function filled(frame: string, fact: { subject: string; value: string }): string {
  const text = frame.replace('{s}', () => fact.subject).replace('{v}', () => fact.value);
  return text.charAt(0).toUpperCase() + text.slice(1);
}
