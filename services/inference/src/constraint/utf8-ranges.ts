import type { Characters } from './pattern.ts';

/** A run of bytes, each within its range. */
export type ByteRanges = readonly (readonly [first: number, last: number])[];

const encoder = new TextEncoder();
const bytesOf = (codePoint: number) => encoder.encode(String.fromCodePoint(codePoint));

/** Last code points of each encoded length. */
const lengthEnds = [0x7f, 0x7ff, 0xffff, 0x10_ffff];

/**
 * The UTF-8 encodings of a set of characters, as runs of byte ranges that do not overlap. Surrogates have none.
 *
 * A range of code points is cut where the encoded length changes, and then so that behind its first differing byte
 * every continuation byte is possible: only then is the product of byte ranges the range itself.
 */
export function utf8Ranges(set: Characters): ByteRanges[] {
  const out: ByteRanges[] = [];
  const add = (first: number, last: number): void => {
    if (first > last) return;
    if (first <= 0xdfff && last >= 0xd800) {
      add(first, 0xd7ff);
      add(0xe000, last);
      return;
    }
    for (const end of lengthEnds) {
      if (first <= end && end < last) {
        add(first, end);
        add(end + 1, last);
        return;
      }
    }
    for (let bits = 6; bits <= 18; bits += 6) {
      const low = 2 ** bits - 1;
      if (last <= 0x7f || Math.floor(first / (low + 1)) === Math.floor(last / (low + 1))) break;
      if (first % (low + 1) !== 0) {
        const cut = first - (first % (low + 1)) + low;
        add(first, cut);
        add(cut + 1, last);
        return;
      }
      if (last % (low + 1) !== low) {
        const cut = last - (last % (low + 1)) - 1;
        add(first, cut);
        add(cut + 1, last);
        return;
      }
    }
    const [from, to] = [bytesOf(first), bytesOf(last)];
    out.push(Array.from(from, (byte, i) => [byte, to[i] ?? byte] as const));
  };
  for (const [first, last] of set) add(first, last);
  return out;
}
