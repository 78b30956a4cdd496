import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { mergeStreams } from './merge-streams.ts';

async function* ticking(name: string, ms: number, count: number, onEnd?: () => void): AsyncGenerator<string> {
  try {
    for (let i = 0; i < count; i++) {
      await sleep(ms);
      yield `${name}${i}`;
    }
  } finally {
    onEnd?.();
  }
}

test('items come as they are made, and each stream keeps its order', async () => {
  const all = await Array.fromAsync(mergeStreams([ticking('a', 2, 5), ticking('b', 7, 3)]));
  expect(all.filter((item) => item.startsWith('a'))).toEqual(['a0', 'a1', 'a2', 'a3', 'a4']);
  expect(all.filter((item) => item.startsWith('b'))).toEqual(['b0', 'b1', 'b2']);
  expect(all.indexOf('a0')).toBeLessThan(all.indexOf('b1'));
});

test('a reader who leaves ends every stream', async () => {
  let ended = 0;
  const end = () => {
    ended += 1;
  };
  for await (const item of mergeStreams([ticking('a', 1, 100, end), ticking('b', 1, 100, end)])) {
    if (item.endsWith('3')) break;
  }
  expect(ended).toBe(2);
});

test('an error in one stream ends the others and is thrown', async () => {
  let ended = false;
  async function* broken(): AsyncGenerator<string> {
    yield 'b0';
    await sleep(3);
    throw new Error('broken');
  }
  const reading = Array.fromAsync(
    mergeStreams([
      ticking('a', 1, 100, () => {
        ended = true;
      }),
      broken(),
    ]),
  );
  await expect(reading).rejects.toThrow('broken');
  expect(ended).toBe(true);
});
