import { inference } from '@medmesh/proto';
import { expect, test } from 'vitest';
import { coalesce } from './coalesce.ts';

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
  async function* source() {
    for (const event of events) {
      await Promise.resolve();
      yield event;
    }
  }
  return Array.fromAsync(coalesce(source()));
}

test('no token and no text is lost, and order is kept', async () => {
  const events = Array.from({ length: 40 }, (_, i) => delta(i, String.fromCharCode(97 + (i % 26))));
  const sent = await run([...events, finished]);
  const deltas = sent.flatMap(({ event }) => (event?.$case === 'delta' ? [event.value] : []));
  expect(deltas.flatMap((d) => d.tokenIds)).toEqual(events.map((_, i) => i));
  expect(deltas.map((d) => d.text).join('')).toBe(events.map((_, i) => String.fromCharCode(97 + (i % 26))).join(''));
  expect(deltas.length).toBeLessThan(12);
  expect(sent.at(-1)).toEqual(finished);
});

test('the first token goes at once', async () => {
  const [first] = await run([delta(1, 'a'), delta(2, 'b'), finished]);
  expect(first?.event).toMatchObject({ $case: 'delta', value: { tokenIds: [1] } });
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
