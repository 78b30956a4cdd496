/** A call with so many arguments is quicker than a decoder. */
const maxShort = 16;
const isAscii = (byte: number) => byte < 0x80;

/** Joins bytes of tokens into text without ever emitting half a character. Invalid bytes become U+FFFD. */
export class Utf8Stream {
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  /** Whether a character may be incomplete: never after an ASCII byte, which ends whatever came before it. */
  #mayWait = false;

  /** The characters completed by these bytes; what is incomplete waits for the next call. */
  push(bytes: Uint8Array): string {
    // Nearly all tokens of most texts: a call of the decoder costs more than all else that is done for a token's text.
    if (!this.#mayWait && bytes.length <= maxShort && bytes.every(isAscii)) return String.fromCharCode(...bytes);
    this.#mayWait = (bytes.at(-1) ?? (this.#mayWait ? 0x80 : 0)) >= 0x80;
    return this.#decoder.decode(bytes, { stream: true });
  }

  /** What still waits, as U+FFFD, and a fresh start. */
  flush(): string {
    this.#mayWait = false;
    return this.#decoder.decode();
  }
}
