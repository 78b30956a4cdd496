import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Utf8Stream } from './utf8-stream.ts';

describe('Utf8Stream', () => {
  it('gives the same text however the bytes are cut', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.oneof(
            fc.integer({ min: 1, max: 0x7f }),
            fc.integer({ min: 1, max: 0x10ffff }).filter((code) => code < 0xd800 || code > 0xdfff),
          ),
        ),
        fc.array(fc.nat({ max: 5 })),
        (codes, sizes) => {
          const text = String.fromCodePoint(...codes);
          const bytes = new TextEncoder().encode(text);
          const stream = new Utf8Stream();
          let joined = '';
          let at = 0;
          for (const size of sizes) {
            joined += stream.push(bytes.subarray(at, at + size));
            at = Math.min(at + size, bytes.length);
          }
          joined += stream.push(bytes.subarray(at)) + stream.flush();
          expect(joined).toBe(new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes));
        },
      ),
    );
  });

  it('never emits half a character', () => {
    const stream = new Utf8Stream();
    const emitted = [...new TextEncoder().encode('阑尾炎🩺')].map((byte) => stream.push(Uint8Array.of(byte)));
    expect(emitted.filter((text) => text !== '')).toEqual(['阑', '尾', '炎', '🩺']);
    expect(stream.flush()).toBe('');
  });

  it('replaces what ASCII cuts off, however the bytes are cut', () => {
    const bytes = fc.array(fc.constantFrom(0x41, 0x0a, 0x80, 0xbf, 0xc3, 0xe9, 0x98, 0xf0, 0x9f, 0xff), {
      maxLength: 24,
    });
    fc.assert(
      fc.property(fc.array(bytes, { maxLength: 8 }), (chunks) => {
        const stream = new Utf8Stream();
        const joined = chunks.map((chunk) => stream.push(Uint8Array.from(chunk))).join('') + stream.flush();
        expect(joined).toBe(new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(chunks.flat())));
      }),
    );
  });

  it('flushes an unfinished character as a replacement and starts afresh', () => {
    const stream = new Utf8Stream();
    expect(stream.push(Uint8Array.of(0xe9, 0x98))).toBe('');
    expect(stream.flush()).toBe('\ufffd');
    expect(stream.push(Uint8Array.of(0x41))).toBe('A');
  });
});
