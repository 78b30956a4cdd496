import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { countBins } from './packing.ts';

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
