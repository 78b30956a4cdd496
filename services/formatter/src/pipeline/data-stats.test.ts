import { dataset } from '@medmesh/proto';
import { describe, expect, test } from 'vitest';
import { createStats } from './data-stats.ts';
import type { FittedRow } from './fit-row.ts';

const { DropReasonCode } = dataset;

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
