import { Failure } from '@medmesh/errors';
import { describe, expect, test } from 'vitest';
import { createEvaluationOverlap } from './evaluation-overlap.ts';

const words = Array.from({ length: 40 }, (_, i) => `word${i}`);
const chinese =
  '患者转移性右下腹痛二十四小时伴发热恶心麦氏点压痛及反跳痛阳性血常规提示白细胞升高考虑急性阑尾炎建议尽早手术治疗术后注意观察体温变化及切口情况';
const overlapOf = (...texts: string[]) => {
  const overlap = createEvaluationOverlap();
  for (const text of texts) overlap.add(text);
  return overlap;
};

describe('an overlap with an evaluation set', () => {
  test('is thirteen words in a row, wherever they stand, and twelve are none', () => {
    const overlap = overlapOf(words.join(' '));
    expect(overlap.overlaps(`before ${words.slice(9, 22).join(' ')} after`)).toBe(true);
    // Twelve short words have fewer than 64 characters only without their numbers' digits.
    const short = Array.from(
      { length: 40 },
      (_, i) => String.fromCharCode(97 + (i % 26)) + String.fromCharCode(97 + Math.floor(i / 26)),
    );
    const ofShort = overlapOf(short.join(' '));
    expect(ofShort.overlaps(`before ${short.slice(9, 22).join(' ')} after`)).toBe(true);
    expect(ofShort.overlaps(`before ${short.slice(9, 21).join(' ')} after`)).toBe(false);
  });

  test('is found whatever letter case, punctuation and width do', () => {
    expect(overlapOf(words.join(' ')).overlaps(words.join(', ').toUpperCase())).toBe(true);
    expect(overlapOf(words.join(' ')).overlaps(words.join(' ').replaceAll('w', 'ｗ'))).toBe(true);
  });

  test('is 64 characters in a row in a script without spaces, and 63 are none', () => {
    const overlap = overlapOf(`${chinese}。`);
    expect(chinese.length).toBeGreaterThan(66);
    expect(overlap.overlaps(`甲${chinese.slice(2, 66)}乙`)).toBe(true);
    expect(overlap.overlaps(`甲${chinese.slice(2, 65)}乙`)).toBe(false);
    expect(overlap.overlaps(`甲${chinese.slice(2, 40)}\n ${chinese.slice(40, 66)}乙`)).toBe(true);
  });

  test('is none with texts too short to hold one', () => {
    const overlap = overlapOf('short', '');
    expect(overlap.overlaps('short')).toBe(false);
    expect(overlap.overlaps('')).toBe(false);
  });

  test('is refused for sets beyond the bound, by count', () => {
    const overlap = createEvaluationOverlap();
    const add = () => {
      for (let i = 0; i < 9; i++) overlap.add('x'.repeat(2 ** 20));
    };
    expect(add).toThrow(Failure);
    expect(add).toThrow('more than 8388608 characters');
  });
});
