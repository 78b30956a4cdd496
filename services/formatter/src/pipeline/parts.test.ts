import { createHash } from 'node:crypto';
import { dataset } from '@medmesh/proto';
import type { Row, SegmentKind, TokenSpan } from '@medmesh/text';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createStats } from './data-stats.ts';
import { createDigestSet } from './digest-set.ts';
import { type FitSpec, type FittedRow, fitRow } from './fit-row.ts';
import { countBins } from './packing.ts';
import { resolveSpec, specDigest } from './resolve-spec.ts';
import { isHeldOut, rowIdentity } from './row-identity.ts';
import { decodeShard, encodeShard, type Shard } from './shard.ts';

const { DropReasonCode, LossMask, OverlongPolicy } = dataset;

describe('the set of digests', () => {
  test('knows what was added, like a set', () => {
    // Few different bytes: many collisions of slots, and the all-zero digest.
    const digest = fc.array(fc.constantFrom(0, 1, 128), { minLength: 16, maxLength: 16 }).map((b) => Buffer.from(b));
    fc.assert(
      fc.property(fc.array(digest, { maxLength: 200 }), (digests) => {
        const set = createDigestSet();
        const known = new Set<string>();
        for (const d of digests) {
          expect(set.add(d)).toBe(!known.has(d.toString('hex')));
          known.add(d.toString('hex'));
        }
        expect(set.size).toBe(known.size);
      }),
    );
  });

  test('grows past its first size', () => {
    const set = createDigestSet();
    const digest = (i: number): Buffer => createHash('sha256').update(String(i)).digest().subarray(0, 16);
    for (let i = 0; i < 20_000; i++) expect(set.add(digest(i))).toBe(true);
    for (let i = 0; i < 20_000; i += 7) expect(set.add(digest(i))).toBe(false);
    expect(set.size).toBe(20_000);
  });
});

describe('the identity of a row', () => {
  const row: Row = { shape: 'reasoning', question: 'Fie\u0300vre ?', reasoning: 'a b', response: 'c' };

  test('is the same whatever the white space and the composition of characters', () => {
    const same: Row = { shape: 'reasoning', question: ' Fi\u00e8vre \n?', reasoning: 'a\t\u3000b', response: 'c\r\n' };
    expect(rowIdentity(same)).toEqual(rowIdentity(row));
  });

  test('differs where a field, a word or the place between fields differs', () => {
    const others: Row[] = [
      { ...row, response: 'C' },
      { ...row, reasoning: 'ab' },
      { ...row, reasoning: 'a', response: 'b c' },
      { shape: 'instruction', instruction: row.question, input: 'a b', output: 'c' },
    ];
    const identities = [row, ...others].map((r) => rowIdentity(r).toString('hex'));
    expect(new Set(identities).size).toBe(identities.length);
  });

  test('decides with the seed who is held out, in the share that was asked for', () => {
    const identities = Array.from({ length: 4000 }, (_, i) => rowIdentity({ ...row, response: String(i) }));
    const heldOut = (seed: number): boolean[] => identities.map((i) => isHeldOut(i, seed, 0.25));
    expect(heldOut(1)).toEqual(heldOut(1));
    expect(heldOut(1)).not.toEqual(heldOut(2));
    const share = heldOut(1).filter(Boolean).length / identities.length;
    expect(Math.abs(share - 0.25)).toBeLessThan(0.03);
    expect(identities.some((i) => isHeldOut(i, 1, 0))).toBe(false);
  });
});

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

describe('packing', () => {
  /** First-fit-decreasing as its name says. */
  function binsOf(lengths: readonly number[], capacity: number): number {
    const rooms: number[] = [];
    for (const length of lengths.toSorted((a, b) => b - a)) {
      const bin = rooms.findIndex((room) => room >= length);
      if (bin < 0) rooms.push(capacity - length);
      else rooms[bin]! -= length;
    }
    return rooms.length;
  }

  test('needs as many bins as first-fit-decreasing', () => {
    const capacity = fc.integer({ min: 16, max: 64 });
    fc.assert(
      fc.property(capacity, fc.array(fc.integer({ min: 1, max: 16 }), { maxLength: 60 }), (size, lengths) => {
        const histogram = new Float64Array(size + 1);
        for (const l of lengths) histogram[l]! += 1;
        expect(countBins(histogram, size)).toBe(binsOf(lengths, size));
      }),
    );
  });

  test('takes many bins', () => {
    const histogram = new Float64Array(101);
    histogram[60] = 5000;
    histogram[40] = 2500;
    expect(countBins(histogram, 100)).toBe(5000);
  });
});

describe('statistics', () => {
  const used = (length: number, prompt: number): FittedRow => ({
    ids: new Uint32Array(length),
    mask: new Uint8Array(length),
    spans: [],
    promptTokenCount: prompt,
    trainableTokenCount: length - prompt,
    truncated: false,
  });

  test('count, add up and rank', () => {
    const stats = createStats(100);
    for (let i = 1; i <= 100; i++) stats.use(used(i, 1), i > 90);
    stats.read(103);
    stats.drop(7, DropReasonCode.TOO_LONG);
    stats.drop(9, DropReasonCode.MISSING_FIELD);
    stats.drop(11, DropReasonCode.TOO_LONG);
    const s = stats.summary();
    expect(s).toMatchObject({
      rowCount: 103,
      usedRowCount: 100,
      droppedRowCount: 3,
      validationRowCount: 10,
      tokenCount: 5050,
      trainableTokenCount: 4950,
    });
    expect(s.rowTokens).toEqual({ count: 100, sum: 5050, min: 1, p50: 50, p95: 95, p99: 99, max: 100 });
    expect(s.promptTokens).toEqual({ count: 100, sum: 100, min: 1, p50: 1, p95: 1, p99: 1, max: 1 });
    expect(s.dropReasons).toEqual([
      { code: DropReasonCode.MISSING_FIELD, rowCount: 1, sampleRowIndices: [9] },
      { code: DropReasonCode.TOO_LONG, rowCount: 2, sampleRowIndices: [7, 11] },
    ]);
  });

  test('keep the first hundred indexes of a reason', () => {
    const stats = createStats(100);
    for (let i = 0; i < 500; i++) stats.drop(i, DropReasonCode.BAD_JSON);
    expect(stats.summary().dropReasons[0]).toMatchObject({
      rowCount: 500,
      sampleRowIndices: Array.from({ length: 100 }, (_, i) => i),
    });
  });

  test('of nothing are zeros', () => {
    expect(createStats(16).summary()).toMatchObject({
      rowTokens: { count: 0, sum: 0, min: 0, p50: 0, p95: 0, p99: 0, max: 0 },
      packingEfficiency: 0,
    });
  });

  test('tell how full the packed sequences are', () => {
    const stats = createStats(100);
    stats.use(used(60, 1), false);
    stats.use(used(60, 1), false);
    stats.use(used(40, 1), false);
    expect(stats.summary().packingEfficiency).toBeCloseTo(160 / 200);
  });
});

describe('a shard', () => {
  const shard: Shard = {
    inputIds: Uint32Array.of(5, 151_645, 7, 8, 9),
    lossMask: Uint8Array.of(0, 1, 0, 1, 1),
    rowOffsets: BigUint64Array.of(0n, 2n, 5n),
    rowIndex: Uint32Array.of(3, 9),
  };

  test('comes back from its bytes, which are always the same', () => {
    expect(decodeShard(encodeShard(shard))).toEqual(shard);
    expect(encodeShard(shard)).toEqual(encodeShard(shard));
  });

  test('is a safetensors file with the tensors of the format', () => {
    const file = Buffer.from(encodeShard(shard));
    const length = Number(file.readBigUInt64LE(0));
    expect(length % 8).toBe(0);
    expect(JSON.parse(file.toString('latin1', 8, 8 + length))).toEqual({
      row_offsets: { dtype: 'U64', shape: [3], data_offsets: [0, 24] },
      input_ids: { dtype: 'U32', shape: [5], data_offsets: [24, 44] },
      row_index: { dtype: 'U32', shape: [2], data_offsets: [44, 52] },
      loss_mask: { dtype: 'U8', shape: [5], data_offsets: [52, 57] },
    });
    expect(file.length).toBe(8 + length + 57);
  });

  test('that is damaged in any byte of its frame is refused or still a shard of the same size', () => {
    const file = encodeShard(shard);
    for (let at = 0; at < file.length - 57; at++) {
      const damaged = Uint8Array.from(file);
      damaged[at]! ^= 0x01;
      let read: Shard | undefined;
      try {
        read = decodeShard(damaged);
      } catch (e) {
        expect(e).toMatchObject({ code: 'data_loss', reason: 'SHARD_CORRUPT' });
      }
      expect(read === undefined || read.inputIds.length === 5).toBe(true);
    }
    for (let length = 0; length < file.length; length++) {
      expect(() => decodeShard(file.subarray(0, length))).toThrow(/the shard is damaged/);
    }
  });
});

describe('a spec', () => {
  const minimal = dataset.DatasetVersionSpec.fromPartial({
    sources: [{ uri: 'sha256:0', fileName: 'a.jsonl' }],
    model: 'projects/p/models/m',
  });

  test('gets every default written out', () => {
    expect(resolveSpec(minimal)).toMatchObject({
      template: { template: { $case: 'builtin', value: 'medical-reasoning' } },
      lossMask: LossMask.COMPLETION,
      maxTokens: 2048,
      overlong: OverlongPolicy.ERROR,
      splitSeed: 3407,
    });
  });

  test('has one digest, with defaults written out or not', () => {
    const written = dataset.DatasetVersionSpec.fromPartial({
      ...minimal,
      maxTokens: 2048,
      lossMask: LossMask.COMPLETION,
    });
    expect(specDigest(resolveSpec(written))).toBe(specDigest(resolveSpec(minimal)));
    expect(specDigest(resolveSpec({ ...minimal, maxTokens: 1024 }))).not.toBe(specDigest(resolveSpec(minimal)));
  });

  test('reports all faults at once', () => {
    const wrong = dataset.DatasetVersionSpec.fromPartial({
      sources: [{ uri: '', fileName: 'a.txt' }],
      maxTokens: 8,
      validationFraction: 0.9,
      rowLimit: -1,
    });
    expect(() => resolveSpec(wrong)).toThrow(
      expect.objectContaining({ code: 'invalid_argument', reason: 'FIELD_INVALID' }),
    );
    try {
      resolveSpec(wrong);
    } catch (e) {
      const fields = (e as { fields: { field: string }[] }).fields.map((f) => f.field);
      // biome-ignore format: one line reads better
      expect(fields.sort()).toEqual(['spec.max_tokens', 'spec.model', 'spec.row_limit', 'spec.sources[0].format', 'spec.sources[0].uri', 'spec.validation_fraction']);
    }
    expect(() => resolveSpec(undefined)).toThrow(/spec is required/);
    expect(() => resolveSpec({ ...minimal, validationFraction: Number.NaN })).toThrow(/validation_fraction/);
  });
});
