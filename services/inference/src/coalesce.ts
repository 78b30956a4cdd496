import type { inference } from '@medmesh/proto';

/** Deltas are sent together: at most so long, or so many tokens, apart. The first of a choice goes at once. */
const maxDelayMs = 25;
const maxTokens = 8;

const isDelta = (event: inference.GenerateEvent) => (event.event?.$case === 'delta' ? event.event.value : undefined);

/**
 * Joins neighbouring deltas of one choice and channel, so that many streams do not drown the event loop in messages. Order is kept; whatever is not a
 * delta is sent at once, after what was held.
 */
export async function* coalesce(
  events: AsyncIterable<inference.GenerateEvent>,
): AsyncGenerator<inference.GenerateEvent> {
  let held: inference.Delta | undefined;
  let heldSince = 0;
  const begun = new Set<number>();
  const take = (): inference.GenerateEvent[] => {
    const out: inference.GenerateEvent[] = held === undefined ? [] : [{ event: { $case: 'delta', value: held } }];
    held = undefined;
    return out;
  };
  for await (const event of events) {
    const delta = isDelta(event);
    if (delta === undefined) {
      yield* take();
      yield event;
      continue;
    }
    if (held !== undefined && (held.choice !== delta.choice || held.channel !== delta.channel)) yield* take();
    if (held === undefined) {
      held = delta;
      heldSince = performance.now();
    } else {
      held = {
        ...held,
        text: held.text + delta.text,
        tokenIds: [...held.tokenIds, ...delta.tokenIds],
        logprobs: [...held.logprobs, ...delta.logprobs],
      };
    }
    const first = !begun.has(delta.choice);
    begun.add(delta.choice);
    if (first || held.tokenIds.length >= maxTokens || performance.now() - heldSince >= maxDelayMs) yield* take();
  }
  yield* take();
}
