import { someWindow } from './windows.ts';
import { comparable, mix, wordHash, wordsOf } from './words.ts';

/** Words of a shingle. */
const shingleWords = 5;
/**
 * MinHash (Broder 1997): the share of 64 minima that two rows have in common estimates the Jaccard similarity of their
 * shingles, with a standard deviation of at most 1/16. Sixteen bands of four minima name the candidates (locality-
 * sensitive hashing): at a similarity of 0.8 one in 5,000 pairs is missed, at 0.5 one in three.
 */
const minima = 64;
const bands = 16;
const rowsOfBand = minima / bands;

export type NearDuplicates = {
  /** Takes a row, and says whether one before it that was kept says nearly the same. A row that does is not kept. */
  add(text: string): boolean;
};

/** Of each kept row, eight bits of every minimum and its place in every band: 64 bytes and 16 times 11 to 22. */
export function createNearDuplicates(similarity: number): NearDuplicates {
  let signatures = new Uint8Array(1024 * minima);
  let count = 0;
  const tables = Array.from({ length: bands }, createBandTable);
  // Multiply and add with odd factors permutes the 32-bit numbers.
  const factors = Uint32Array.from({ length: minima }, (_, i) => mix(2 * i + 1) | 1);
  const shifts = Uint32Array.from({ length: minima }, (_, i) => mix(2 * i + 2));
  const lowest = new Uint32Array(minima);

  const matches = (row: number): boolean => {
    let same = 0;
    for (let i = 0; i < minima; i++) same += Number(signatures[row * minima + i] === (lowest[i]! & 0xff));
    // Of minima that differ, one in 256 has the same eight bits.
    return (same / minima - 1 / 256) / (1 - 1 / 256) >= similarity;
  };
  return {
    add(text) {
      lowest.fill(0xffffffff);
      const words = wordsOf(comparable(text)).map(wordHash);
      someWindow(words, Math.max(1, Math.min(shingleWords, words.length)), (hash) => {
        const shingle = hash >>> 0;
        for (let i = 0; i < minima; i++) {
          const value = mix((Math.imul(shingle, factors[i]!) + shifts[i]!) | 0);
          if (value < lowest[i]!) lowest[i] = value;
        }
        return false;
      });
      const keys = Array.from({ length: bands }, (_, band) => {
        let key = band;
        for (let i = band * rowsOfBand; i < (band + 1) * rowsOfBand; i++) key = mix(key ^ lowest[i]!);
        return key;
      });
      if (tables.some((table, band) => table.some(keys[band]!, matches))) return true;
      if ((count + 1) * minima > signatures.length) {
        const larger = new Uint8Array(2 * signatures.length);
        larger.set(signatures);
        signatures = larger;
      }
      for (let i = 0; i < minima; i++) signatures[count * minima + i] = lowest[i]! & 0xff;
      for (const [band, table] of tables.entries()) table.add(keys[band]!, count);
      count += 1;
      return false;
    },
  };
}

/** A key that so many rows share says little about any of them: shingles of a form that all rows fill in. */
const mostRowsOfKey = 32;

/** Rows by the key of one band, in flat memory: 8 bytes a slot, at most three quarters full. */
function createBandTable() {
  // Row number plus one; 0 is free.
  let rows = new Uint32Array(1024);
  let keys = new Uint32Array(1024);
  let size = 0;
  const grow = (): void => {
    const [oldRows, oldKeys] = [rows, keys];
    rows = new Uint32Array(2 * oldRows.length);
    keys = new Uint32Array(2 * oldRows.length);
    for (const [i, row] of oldRows.entries()) if (row !== 0) place(oldKeys[i]!, row);
  };
  const place = (key: number, row: number): boolean => {
    let at = key & (rows.length - 1);
    for (let same = 0; rows[at] !== 0; at = (at + 1) & (rows.length - 1)) {
      same += Number(keys[at] === key);
      if (same === mostRowsOfKey) return false;
    }
    rows[at] = row;
    keys[at] = key;
    return true;
  };
  return {
    some(key: number, accepts: (row: number) => boolean): boolean {
      for (let at = key & (rows.length - 1); rows[at] !== 0; at = (at + 1) & (rows.length - 1)) {
        if (keys[at] === key && accepts(rows[at]! - 1)) return true;
      }
      return false;
    },
    add(key: number, row: number): void {
      if (size + 1 > rows.length * 0.75) grow();
      size += Number(place(key, row + 1));
    },
  };
}
