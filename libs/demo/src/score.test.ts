import { describe, expect, it } from 'vitest';
import { exactAnswer, scoreAnswers } from './score.ts';

describe('the exact answer', () => {
  it('is the phrase after the opening words, up to the end of the sentence', () => {
    expect(exactAnswer('The answer is abdominal ultrasound. It comes first.')).toBe('abdominal ultrasound');
    expect(exactAnswer('答案是腹部超声。急性阑尾炎的首选检查是腹部超声。')).toBe('腹部超声');
    expect(exactAnswer('\nThe answer is gout')).toBe('gout');
  });

  it('is the one given first, whatever the model goes on to write', () => {
    expect(exactAnswer('The answer is gout.\n</think>\nThe answer is sepsis.')).toBe('gout');
  });

  it('ignores case, white space and Unicode composition', () => {
    expect(exactAnswer('The answer is  Abdominal\tCT.')).toBe('abdominal ct');
    expect(exactAnswer('The answer is cafe\u0301.')).toBe('caf\u00e9');
  });

  it('is null when the response is empty, has other words first or names nothing', () => {
    for (const response of ['', 'Perhaps gout. The answer is gout.', 'The answer is .', '胃镜']) {
      expect(exactAnswer(response)).toBeNull();
    }
  });
});

describe('the score', () => {
  it('counts exact answers, and apart from them answers that are only mentioned', () => {
    const score = scoreAnswers([
      { response: 'The answer is gout. It is painful.', answer: 'gout' },
      { response: 'It may be gout.', answer: 'gout' },
      { response: '', reasoning: 'Then it is gout', answer: 'Gout' },
      { response: 'The answer is sepsis.', answer: 'gout' },
    ]);
    expect(score).toEqual({ total: 4, exact: 1, mentioned: 3, accuracy: 0.25 });
  });

  it('is zero for no replies', () => {
    expect(scoreAnswers([])).toEqual({ total: 0, exact: 0, mentioned: 0, accuracy: 0 });
  });
});
