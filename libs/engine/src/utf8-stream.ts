/** Joins bytes of tokens into text without ever emitting half a character. Invalid bytes become U+FFFD. */
export class Utf8Stream {
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });

  /** The characters completed by these bytes; what is incomplete waits for the next call. */
  push(bytes: Uint8Array): string {
    return this.#decoder.decode(bytes, { stream: true });
  }

  /** What still waits, as U+FFFD, and a fresh start. */
  flush(): string {
    return this.#decoder.decode();
  }
}
