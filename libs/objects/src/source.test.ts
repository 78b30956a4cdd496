import { expect, test } from 'vitest';
import { untilAborted } from './source.ts';

test('a long stream under a signal is passed on without being kept', async () => {
  const mebibyte = 2 ** 20;
  async function* pieces() {
    for (let i = 0; i < 512; i += 1) yield new Uint8Array(mebibyte);
  }
  let peak = 0;
  for await (const piece of untilAborted(pieces(), new AbortController().signal)) {
    expect(piece).toHaveLength(mebibyte);
    peak = Math.max(peak, process.memoryUsage().arrayBuffers);
  }
  expect(peak).toBeLessThan(256 * mebibyte);
});

test('an abort ends the stream for its reason, while the source hangs and between two values', async () => {
  const reason = new Error('enough');
  let cleaned = false;
  async function* source(hang: boolean) {
    try {
      yield 1;
      if (hang) await new Promise(() => undefined);
      yield 2;
    } finally {
      cleaned = true;
    }
  }
  for (const hang of [true, false]) {
    const abort = new AbortController();
    const seen: number[] = [];
    const reading = (async () => {
      for await (const value of untilAborted(source(hang), abort.signal)) {
        seen.push(value);
        if (hang) setTimeout(() => abort.abort(reason), 10);
        else abort.abort(reason);
      }
    })();
    await expect(reading).rejects.toBe(reason);
    expect(seen).toEqual([1]);
  }
  expect(cleaned).toBe(true);
});
