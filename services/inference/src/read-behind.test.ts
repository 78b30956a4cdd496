import { inference } from '@medmesh/proto';
import { expect, test, vi } from 'vitest';
import { readBehind } from './read-behind.ts';

const delta = (
  tokenId: number,
  text: string,
  choice = 0,
  channel: inference.Channel = inference.Channel.ANSWER,
): inference.GenerateEvent => ({
  event: { $case: 'delta', value: { choice, channel, text, tokenIds: [tokenId], logprobs: [] } },
});
const finished: inference.GenerateEvent = { event: { $case: 'finished', value: inference.Finished.fromPartial({}) } };

async function run(events: inference.GenerateEvent[]) {
  return Array.fromAsync(
    readBehind(async (emit) => {
      for (const event of events) {
        await Promise.resolve();
        emit(event);
      }
    }, 1_000_000),
  );
}

test('no token and no text is lost, and order is kept', async () => {
  const events = Array.from({ length: 40 }, (_, i) => delta(i, String.fromCharCode(97 + (i % 26))));
  const sent = await run([...events, finished]);
  const deltas = sent.flatMap(({ event }) => (event?.$case === 'delta' ? [event.value] : []));
  expect(deltas.flatMap((d) => d.tokenIds)).toEqual(events.map((_, i) => i));
  expect(deltas.map((d) => d.text).join('')).toBe(events.map((_, i) => String.fromCharCode(97 + (i % 26))).join(''));
  expect(sent.at(-1)).toEqual(finished);
});

test('reasoning and answer, and different choices, are never joined', async () => {
  const sent = await run([
    delta(1, 'a', 0, inference.Channel.REASONING),
    delta(2, 'b', 0, inference.Channel.REASONING),
    delta(3, 'c'),
    delta(4, 'd', 1),
    finished,
  ]);
  const texts = sent.flatMap(({ event }) => (event?.$case === 'delta' ? [event.value.text] : []));
  expect(texts).toEqual(['a', 'b', 'c', 'd']);
});

test('a reader that stops reading ends the source at the bound, and is told so instead of getting the rest', async () => {
  const state = { made: 0, ended: false };
  // Makes deltas for as long as it is let, a tick apart.
  const events = readBehind(async (emit, stopped) => {
    while (!stopped.aborted) {
      await new Promise((resolve) => setImmediate(resolve));
      emit(delta(state.made++, 'word '));
    }
    state.ended = true;
    throw new Error('stopped');
  }, 50_000);
  await events.next();
  // The source ends although nobody reads on.
  await vi.waitUntil(() => state.ended);
  expect(state.made).toBeGreaterThan(1_000);
  expect(state.made).toBeLessThan(5_000);
  await expect(Array.fromAsync(events)).rejects.toMatchObject({ code: 'resource_exhausted', reason: 'SLOW_READER' });
});

test('a reader that was slow for a while gets everything, in few large messages', async () => {
  const many = Array.from({ length: 20_000 }, (_, i) => delta(i, 'word '));
  const events = readBehind(async (emit) => {
    emit(many[0]!);
    await new Promise((resolve) => setImmediate(resolve));
    for (const event of [...many.slice(1), finished]) emit(event);
  }, 10_000_000);
  const first = await events.next();
  await new Promise((resolve) => setTimeout(resolve, 50));
  const rest = await Array.fromAsync(events);
  expect(rest.length).toBeLessThan(200);
  const ids = [first.value!, ...rest].flatMap(({ event }) => (event?.$case === 'delta' ? event.value.tokenIds : []));
  expect(ids).toEqual(many.map((_, i) => i));
});

test('a reader that leaves ends the source, also where it waits', async () => {
  let ended = false;
  const events = readBehind(async (emit, stopped) => {
    emit(delta(1, 'a'));
    await new Promise((resolve) => stopped.addEventListener('abort', resolve));
    ended = true;
  }, 10_000);
  for await (const event of events) if (event) break;
  expect(ended).toBe(true);
});
