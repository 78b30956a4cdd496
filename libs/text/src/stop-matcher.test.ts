import { Failure } from '@medmesh/errors';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createStopMatcher } from './stop-matcher.ts';

/** The definition: one character at a time, the first stop string that is complete ends the text. */
function cutWhole(text: string, stops: readonly string[]): { text: string; matched?: string } {
  for (let end = 1; end <= text.length; end++) {
    const done = stops.filter((s) => text.slice(0, end).endsWith(s)).sort((a, b) => b.length - a.length)[0];
    if (done !== undefined) return { text: text.slice(0, end - done.length), matched: done };
  }
  return { text };
}

function run(chunks: readonly string[], stops: readonly string[]): { text: string; matched?: string } {
  const matcher = createStopMatcher(stops);
  let text = '';
  for (const chunk of chunks) {
    const r = matcher.push(chunk);
    text += r.text;
    if (r.matched !== undefined) return { text, matched: r.matched };
  }
  return { text: text + matcher.flush() };
}

describe('stop matcher', () => {
  test('finds the same stop whatever the chunking', () => {
    const letters = fc.array(fc.constantFrom('a', 'b', 'c'), { maxLength: 14 }).map((l) => l.join(''));
    const stop = fc.array(fc.constantFrom('a', 'b', 'c'), { minLength: 1, maxLength: 4 }).map((l) => l.join(''));
    fc.assert(
      fc.property(letters, fc.array(stop, { maxLength: 4 }), fc.array(fc.nat(14)), (text, stops, cuts) => {
        const at = [0, ...cuts.map((c) => Math.min(c, text.length)).sort((a, b) => a - b), text.length];
        const chunks = at.slice(1).map((end, i) => text.slice(at[i], end));
        expect(run(chunks, stops)).toEqual(cutWhole(text, stops));
      }),
      { numRuns: 3000 },
    );
  });

  test('holds back only what could begin a stop string', () => {
    const matcher = createStopMatcher(['###']);
    expect(matcher.push('answer')).toEqual({ text: 'answer' });
    expect(matcher.push(' #')).toEqual({ text: ' ' });
    expect(matcher.push('1')).toEqual({ text: '#1' });
    expect(matcher.push('##')).toEqual({ text: '' });
    expect(matcher.push('# next')).toEqual({ text: '', matched: '###' });
    expect(matcher.push('more')).toEqual({ text: '', matched: '###' });
  });

  test('refuses an empty stop string and too many', () => {
    expect(() => createStopMatcher([''])).toThrow(Failure);
    expect(() => createStopMatcher(Array.from({ length: 17 }, (_, i) => `s${i}`))).toThrow(/at most 16/);
  });
});
