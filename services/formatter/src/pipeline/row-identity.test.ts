import type { Row } from '@medmesh/text';
import { describe, expect, test } from 'vitest';
import { isHeldOut, rowIdentity } from './row-identity.ts';

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
