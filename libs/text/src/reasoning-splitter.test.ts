import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type ChannelText, createReasoningSplitter } from './reasoning-splitter.ts';

/** The definition, on the whole text at once. */
function splitWhole(text: string, startsInside: boolean): { reasoning: string; answer: string } {
  let rest = text.replace(/^\n+/, '');
  let inside = startsInside;
  if (rest.startsWith('<think>')) {
    inside = true;
    rest = rest.slice('<think>'.length).replace(/^\n+/, '');
  }
  if (!inside) return { reasoning: '', answer: rest };
  const at = rest.indexOf('</think>');
  if (at < 0) return { reasoning: rest, answer: '' };
  return {
    reasoning: rest.slice(0, at).replace(/\n+$/, ''),
    answer: rest.slice(at + '</think>'.length).replace(/^\n+/, ''),
  };
}

function collect(chunks: readonly (string | number)[], startsInside: boolean): { reasoning: string; answer: string } {
  const splitter = createReasoningSplitter(startsInside, { thinkStartId: 7, thinkEndId: 8 });
  const out: ChannelText[] = [...chunks.flatMap((c) => splitter.push(c)), ...splitter.flush()];
  const of = (channel: string): string =>
    out
      .filter((o) => o.channel === channel)
      .map((o) => o.text)
      .join('');
  return { reasoning: of('reasoning'), answer: of('answer') };
}

const fragment = fc.constantFrom(
  '<think>',
  '</think>',
  '<',
  '</',
  'think>',
  '</thin',
  '\n',
  '\n\n',
  'why',
  '因为',
  '🙂',
  ' ',
  '>',
);
const cutText = fc
  .tuple(
    fc.array(fragment, { maxLength: 12 }).map((p) => p.join('')),
    fc.array(fc.nat(60), { maxLength: 12 }),
  )
  .map(([text, cuts]) => {
    const at = [0, ...cuts.map((c) => Math.min(c, text.length)).sort((a, b) => a - b), text.length];
    return { text, chunks: at.slice(1).map((end, i) => text.slice(at[i], end)) };
  });

describe('reasoning splitter', () => {
  test('splits the same whatever the chunking', () => {
    fc.assert(
      fc.property(cutText, fc.boolean(), ({ text, chunks }, startsInside) => {
        expect(collect(chunks, startsInside)).toEqual(splitWhole(text, startsInside));
      }),
      { numRuns: 3000 },
    );
  });

  test('drops the tags and the line feeds around them', () => {
    expect(collect(['First this.\n</think>\n\nTherefore that.'], true)).toEqual({
      reasoning: 'First this.',
      answer: 'Therefore that.',
    });
    expect(collect(['<think>\nwell\n</think>\n\nyes'], false)).toEqual({ reasoning: 'well', answer: 'yes' });
  });

  test('takes token ids of the tags', () => {
    expect(collect([7, '\nwell', '\n', 8, '\n\nyes', 8, '!'], false)).toEqual({ reasoning: 'well', answer: 'yes!' });
  });

  test('a tag in the answer is answer text', () => {
    expect(collect(['a</think>b</think>c'], true)).toEqual({ reasoning: 'a', answer: 'b</think>c' });
  });

  test('sends reasoning on at once and holds back no more than a possible tag', () => {
    const splitter = createReasoningSplitter(true);
    expect(splitter.push('so far')).toEqual([{ channel: 'reasoning', text: 'so far' }]);
    expect(splitter.push(' so </thi')).toEqual([{ channel: 'reasoning', text: ' so ' }]);
    expect(splitter.push('s')).toEqual([{ channel: 'reasoning', text: '</this' }]);
    expect(splitter.channel).toBe('reasoning');
    expect(splitter.push('</think>ok')).toEqual([{ channel: 'answer', text: 'ok' }]);
    expect(splitter.channel).toBe('answer');
  });
});
