/** A letter of a script that writes no spaces is a word of its own; elsewhere a run of letters and digits is one. */
const wordPattern =
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|(?:(?![\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}])[\p{L}\p{N}\p{M}])+/gu;

/** Text as it is compared: compatibility forms and letter case made equal. */
export const comparable = (text: string): string => text.normalize('NFKC').toLowerCase();

/** The words of a comparable text. */
export const wordsOf = (text: string): readonly string[] => text.match(wordPattern) ?? [];

/** A hash of a word: 32 bits, FNV-1a with a final mix. */
export function wordHash(word: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < word.length; i++) h = Math.imul(h ^ word.charCodeAt(i), 0x01000193);
  return mix(h);
}

/** Spreads the bits of a 32-bit number (the finaliser of MurmurHash3). */
export function mix(h: number): number {
  let x = h;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}
