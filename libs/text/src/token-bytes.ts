/**
 * The bytes behind a vocabulary piece.
 *
 * Byte-level vocabularies write every byte as one letter: printable Latin-1 bytes stand for themselves, the other 68
 * take the code points from U+0100 up, in byte order. Others write a space as `▁` and a lone byte as `<0x0A>`.
 */
const byteOfLetter: ReadonlyMap<string, number> = (() => {
  const printable = (b: number): boolean =>
    (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
  const map = new Map<string, number>();
  let next = 0x100;
  for (let b = 0; b < 256; b++) map.set(String.fromCodePoint(printable(b) ? b : next++), b);
  return map;
})();

const utf8 = new TextEncoder();

/** Bytes of a byte-level piece. A letter outside the alphabet (only added tokens have them) keeps its UTF-8 bytes. */
export function byteLevelBytes(piece: string): Uint8Array {
  const out: number[] = [];
  for (const letter of piece) {
    const byte = byteOfLetter.get(letter);
    if (byte === undefined) out.push(...utf8.encode(letter));
    else out.push(byte);
  }
  return Uint8Array.from(out);
}

/** Bytes of a SentencePiece-style piece. */
export function sentencePieceBytes(piece: string): Uint8Array {
  const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(piece);
  return byte ? Uint8Array.of(Number.parseInt(byte[1]!, 16)) : utf8.encode(piece.replaceAll('▁', ' '));
}
