import { dataset } from '@medmesh/proto';
import type { SegmentKind, TokenSpan } from '@medmesh/text';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type FitSpec, type FittedRow, fitRow } from './fit-row.ts';

const { DropReasonCode, LossMask, OverlongPolicy } = dataset;

describe('fitting a row', () => {
  const kinds: [SegmentKind, number][] = [
    ['prompt', 4],
    ['reasoning', 5],
    ['markup', 2],
    ['response', 3],
    ['eos', 1],
  ];
  const encode = (parts: readonly [SegmentKind, number][]) => {
    const spans: TokenSpan[] = [];
    let at = 0;
    for (const [kind, length] of parts) {
      spans.push({ kind, start: at, end: at + length });
      at += length;
    }
    return { ids: Uint32Array.from({ length: at }, (_, i) => i), spans };
  };
  const spec = (o: Partial<FitSpec> = {}): FitSpec => ({
    lossMask: LossMask.COMPLETION,
    maxTokens: 16,
    overlong: OverlongPolicy.ERROR,
    ...o,
  });
  const fit = (o: Partial<FitSpec> = {}, parts = kinds): FittedRow => fitRow(encode(parts), spec(o)) as FittedRow;

  test.each([
    [LossMask.COMPLETION, '000011111111111'],
    [LossMask.RESPONSE_ONLY, '000000000001111'],
    [LossMask.ALL, '111111111111111'],
  ])('masks the tokens that do not count (%s)', (lossMask, mask) => {
    const row = fit({ lossMask });
    expect([...row.mask].join('')).toBe(mask);
    expect(row.trainableTokenCount).toBe(mask.replaceAll('0', '').length);
    expect(row.promptTokenCount).toBe(4);
    expect(row.truncated).toBe(false);
  });

  test('a row of exactly the limit fits', () => {
    expect(fit({ maxTokens: 15 }).truncated).toBe(false);
  });

  test.each([OverlongPolicy.ERROR, OverlongPolicy.DROP])('under policy %s a longer row is TOO_LONG', (overlong) => {
    expect(fitRow(encode(kinds), spec({ maxTokens: 14, overlong }))).toEqual({ fault: DropReasonCode.TOO_LONG });
  });

  test('TRUNCATE_RIGHT cuts the end of the completion, its end token with it', () => {
    const row = fit({ maxTokens: 12, overlong: OverlongPolicy.TRUNCATE_RIGHT });
    expect([...row.ids]).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    expect([...row.mask].join('')).toBe('000011111111');
    expect(row.spans.at(-1)).toEqual({ kind: 'response', start: 11, end: 12 });
    expect(row.truncated).toBe(true);
  });

  test('TRUNCATE_RIGHT never cuts the question to keep the answer', () => {
    const parts: [SegmentKind, number][] = [
      ['prompt', 16],
      ['response', 2],
      ['eos', 1],
    ];
    expect(fitRow(encode(parts), spec({ overlong: OverlongPolicy.TRUNCATE_RIGHT }))).toEqual({
      fault: DropReasonCode.TOO_LONG,
    });
  });

  test('TRUNCATE_LEFT cuts the beginning of the reasoning and keeps question and response', () => {
    const row = fit({ maxTokens: 12, overlong: OverlongPolicy.TRUNCATE_LEFT });
    expect([...row.ids]).toEqual([0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14]);
    expect(row.spans).toEqual([
      { kind: 'prompt', start: 0, end: 4 },
      { kind: 'reasoning', start: 4, end: 6 },
      { kind: 'markup', start: 6, end: 8 },
      { kind: 'response', start: 8, end: 11 },
      { kind: 'eos', start: 11, end: 12 },
    ]);
    expect(fit({ maxTokens: 10, overlong: OverlongPolicy.TRUNCATE_LEFT }).spans.map((s) => s.kind)).toEqual([
      'prompt',
      'markup',
      'response',
      'eos',
    ]);
  });

  test('TRUNCATE_LEFT leaves a row TOO_LONG whose reasoning is not the surplus', () => {
    expect(fitRow(encode(kinds), spec({ maxTokens: 9, overlong: OverlongPolicy.TRUNCATE_LEFT }))).toEqual({
      fault: DropReasonCode.TOO_LONG,
    });
  });

  test('a row whose trained tokens were all cut away has NO_TRAINABLE_TOKENS', () => {
    const o = { maxTokens: 8, overlong: OverlongPolicy.TRUNCATE_RIGHT, lossMask: LossMask.RESPONSE_ONLY };
    expect(fitRow(encode(kinds), spec(o))).toEqual({ fault: DropReasonCode.NO_TRAINABLE_TOKENS });
  });

  test('never makes a row longer than the limit, nor loses count of its tokens', () => {
    const part = fc.tuple(
      fc.constantFrom<SegmentKind>('prompt', 'reasoning', 'markup', 'response', 'eos'),
      fc.integer({ min: 1, max: 9 }),
    );
    const policy = fc.constantFrom(OverlongPolicy.TRUNCATE_LEFT, OverlongPolicy.TRUNCATE_RIGHT);
    fc.assert(
      fc.property(
        fc.array(part, { minLength: 1, maxLength: 8 }),
        policy,
        fc.integer({ min: 1, max: 40 }),
        (parts, overlong, maxTokens) => {
          const row = fitRow(encode(parts), spec({ overlong, maxTokens }));
          fc.pre(!('fault' in row));
          expect(row.ids.length).toBeLessThanOrEqual(maxTokens);
          expect(row.mask.length).toBe(row.ids.length);
          expect(row.mask.reduce((n, m) => n + m, 0)).toBe(row.trainableTokenCount);
          expect(row.spans.at(-1)?.end).toBe(row.ids.length);
          const prompts = encode(parts)
            .spans.filter((s) => s.kind === 'prompt')
            .reduce((n, s) => n + s.end - s.start, 0);
          expect(row.spans.filter((s) => s.kind === 'prompt').reduce((n, s) => n + s.end - s.start, 0)).toBe(prompts);
        },
      ),
    );
  });
});
