import { readFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { factsIn, languages } from './facts.ts';
import { demoHeldOutPath, demoRowsPath } from './paths.ts';
import { demoQuestions } from './questions.ts';
import { readDemoRows } from './read-rows.ts';
import { generateRows, rowsToJsonl } from './rows.ts';
import { exactAnswer } from './score.ts';

const train = await readDemoRows(demoRowsPath);
const heldOut = await readDemoRows(demoHeldOutPath);
const everyRow = [...train, ...heldOut];
const normalise = (text: string) =>
  text
    .normalize('NFKC')
    .toLowerCase()
    .replace(/[\s\p{P}]+/gu, '');

describe('the committed rows', () => {
  it('are what the generator writes', async () => {
    const generated = generateRows();
    expect(await readFile(demoRowsPath, 'utf8')).toBe(rowsToJsonl(generated.train));
    expect(await readFile(demoHeldOutPath, 'utf8')).toBe(rowsToJsonl(generated.heldOut));
  });

  it('are enough, in both languages', () => {
    expect(train.length).toBeGreaterThanOrEqual(240);
    expect(heldOut.length).toBeGreaterThanOrEqual(60);
    for (const rows of [train, heldOut]) {
      const english = rows.filter((row) => row.language === 'en').length;
      expect(english * 2).toBe(rows.length);
    }
  });

  it('have text in every field and say that they are no medical advice', () => {
    for (const row of everyRow) {
      for (const field of [row.Question, row.Complex_CoT, row.Response, row.answer]) expect(field.trim()).toBe(field);
      expect(Math.min(row.Question.length, row.Complex_CoT.length, row.Response.length)).toBeGreaterThan(4);
      expect(row.notice).toMatch(/not medical advice|不是医疗建议/u);
      expect(JSON.stringify(row)).not.toMatch(/undefined|\{(?:s|v|sign|statement|diagnosis)\}|think>/u);
    }
  });

  it('begin the response with the canonical answer, which is the value of their fact', () => {
    const values = new Map(languages.flatMap(factsIn).map((fact) => [`${fact.language} ${fact.id}`, fact.value]));
    for (const row of everyRow) {
      expect(row.answer).toBe(values.get(`${row.language} ${row.fact}`));
      expect(exactAnswer(row.Response)).toBe(row.answer.toLowerCase());
      expect(row.Complex_CoT).toContain(row.answer.slice(1));
    }
  });

  it('ask no question twice, within a file or across the split', () => {
    const questions = everyRow.map((row) => normalise(row.Question));
    const repeated = questions.filter((question, index) => questions.indexOf(question) !== index);
    expect(repeated).toEqual([]);
    const asked = new Set(questions);
    expect(demoQuestions.filter((question) => asked.has(normalise(question)))).toEqual([]);
  });

  it('hold out only questions about facts that training rows teach in other words', () => {
    const taught = new Set(train.map((row) => `${row.language} ${row.fact}`));
    expect(heldOut.filter((row) => !taught.has(`${row.language} ${row.fact}`))).toEqual([]);
  });

  it('do not repeat one sentence frame: the first words of questions differ widely', () => {
    const openings = new Set(train.map((row) => row.Question.slice(0, row.language === 'en' ? 12 : 4)));
    expect(openings.size).toBeGreaterThan(60);
  });
});
