import { expect, test } from 'vitest';
import { spreadOf } from './percentiles.ts';
import { arrivals } from './serve.ts';

test('percentiles are values that were measured, by nearest rank', () => {
  const values = Array.from({ length: 100 }, (_, i) => 100 - i);
  expect(spreadOf(values)).toEqual({ mean: 50.5, p50: 50, p90: 90, p95: 95, p99: 99, max: 100 });
  expect(spreadOf([7])).toEqual({ mean: 7, p50: 7, p90: 7, p95: 7, p99: 7, max: 7 });
  expect(spreadOf([])).toBeUndefined();
});

test('requests come at random with the asked mean rate, in order', () => {
  let state = 1;
  const random = () => {
    state = (state * 16_807) % 2_147_483_647;
    return state / 2_147_483_647;
  };
  const due = arrivals(20_000, 50, random);
  expect(due).toEqual(due.toSorted((a, b) => a - b));
  expect(due.at(-1)! / 1000).toBeGreaterThan(390);
  expect(due.at(-1)! / 1000).toBeLessThan(410);
  const gaps = due.map((at, i) => at - (due[i - 1] ?? 0));
  // Of an exponential distribution, a share of 1/e is longer than the mean.
  expect(gaps.filter((gap) => gap > 20).length / gaps.length).toBeCloseTo(Math.exp(-1), 1);
});
