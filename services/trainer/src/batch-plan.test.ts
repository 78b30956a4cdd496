import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createBatchPlan, longestMicroBatch, packFirstFitDecreasing } from './batch-plan.ts';

const settings = { microBatchRows: 1, gradientAccumulation: 2, packedTokens: 0, keepOrder: false };
const length = (row: number) => 10 + (row % 7);

test('one pass takes every row once, in an order that the seed decides', () => {
  const plan = createBatchPlan(9, length, { ...settings, gradientAccumulation: 3 }, 3407);
  const rows = [0, 1, 2].flatMap((step) => plan.step(step)).flat();
  expect(rows.toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
  expect(rows).not.toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
  const other = createBatchPlan(9, length, { ...settings, gradientAccumulation: 3 }, 1);
  expect([0, 1, 2].flatMap((step) => other.step(step)).flat()).not.toEqual(rows);
});

test('a plan made anew at any step goes on with the rows that an uninterrupted one takes', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 40 }),
      fc.integer({ min: 1, max: 5 }),
      fc.integer({ min: 1, max: 4 }),
      fc.integer({ min: 0, max: 60 }),
      (rows, micro, accumulation, from) => {
        const s = { ...settings, microBatchRows: micro, gradientAccumulation: accumulation };
        const whole = createBatchPlan(rows, length, s, 7);
        const steps = Array.from({ length: from + 5 }, (_, step) => whole.step(step));
        const resumed = createBatchPlan(rows, length, s, 7);
        expect(Array.from({ length: 5 }, (_, i) => resumed.step(from + i))).toEqual(steps.slice(from));
      },
    ),
  );
});

test('packing puts every row in exactly one bin and never overfills one', () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 64 }), { minLength: 1, maxLength: 200 }), (lengths) => {
      const rows = lengths.map((_, i) => i);
      const bins = packFirstFitDecreasing(rows, (row) => lengths[row] ?? 0, 64);
      expect(bins.flat().toSorted((a, b) => a - b)).toEqual(rows);
      for (const bin of bins) expect(bin.reduce((sum, row) => sum + (lengths[row] ?? 0), 0)).toBeLessThanOrEqual(64);
      // First-fit-decreasing never needs more than 11/9 of the optimum, plus one.
      const total = lengths.reduce((sum, l) => sum + l, 0);
      expect(bins.length).toBeLessThanOrEqual(Math.ceil((total / 64) * 2));
    }),
  );
});

test('rows keep their order when asked to', () => {
  const plan = createBatchPlan(
    5,
    length,
    { ...settings, microBatchRows: 2, gradientAccumulation: 1, keepOrder: true },
    3407,
  );
  expect([plan.step(0), plan.step(1), plan.step(2), plan.step(3)]).toEqual([[[0, 1]], [[2, 3]], [[4]], [[0, 1]]]);
  expect(plan.epochAfter(3)).toBe(1);
});

test('the longest micro-batch is that of the steps to come, whatever other steps would hold', () => {
  const lengths = [5, 40, 7, 30, 6, 20];
  const plan = createBatchPlan(6, (row) => lengths[row] ?? 0, { ...settings, microBatchRows: 2, keepOrder: true }, 1);
  expect(longestMicroBatch(plan, (row) => lengths[row] ?? 0, 1)).toBe(45);
  expect(longestMicroBatch(plan, (row) => lengths[row] ?? 0, 0)).toBe(0);
  const last = createBatchPlan(
    6,
    (row) => lengths[row] ?? 0,
    { ...settings, gradientAccumulation: 1, keepOrder: true },
    1,
  );
  expect(longestMicroBatch(last, (row) => lengths[row] ?? 0, 1)).toBe(5);
  expect(longestMicroBatch(last, (row) => lengths[row] ?? 0, 6)).toBe(40);
});
