import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createDigestSet } from './digest-set.ts';

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
