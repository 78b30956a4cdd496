import { mix } from './words.ts';

const bases = [0x9e3779b1, 0x85ebca77] as const;

/**
 * Calls `visit` with a 53-bit hash of every window of `size` neighbouring symbols, until it says true. Returns whether it
 * did. Rolling: two polynomials modulo 2^32, so that a window costs the same whatever its size.
 */
export function someWindow(symbols: ArrayLike<number>, size: number, visit: (hash: number) => boolean): boolean {
  let [a, b] = [0, 0];
  let [highA, highB] = [1, 1];
  for (let i = 1; i < size; i++) {
    highA = Math.imul(highA, bases[0]);
    highB = Math.imul(highB, bases[1]);
  }
  for (let i = 0; i < symbols.length; i++) {
    if (i >= size) {
      const gone = symbols[i - size]!;
      a = (a - Math.imul(gone, highA)) | 0;
      b = (b - Math.imul(gone, highB)) | 0;
    }
    a = (Math.imul(a, bases[0]) + symbols[i]!) | 0;
    b = (Math.imul(b, bases[1]) + symbols[i]!) | 0;
    if (i >= size - 1 && visit((mix(a) & 0x1fffff) * 2 ** 32 + mix(b))) return true;
  }
  return false;
}
