import { Failure } from '@medmesh/errors';
import type { inference } from '@medmesh/proto';
import { deltaOf, join } from './deltas.ts';

/** Text and ids of one message, when the reader is behind and much has gathered. */
const maxMessageBytes = 32_768;

type Event = inference.GenerateEvent;

/** About what an event takes in memory, and what it takes more when its content joins another. */
const eventBytes = 128;
function contentBytes(event: Event): number {
  const delta = deltaOf(event);
  if (delta === undefined) return 0;
  const logprobs = delta.logprobs.reduce((sum, { top }) => sum + 64 * (1 + top.length), 0);
  return 2 * delta.text.length + 8 * delta.tokenIds.length + logprobs;
}

/** What has been made and not been read. Neighbouring deltas of one choice and channel are one. */
function createBacklog() {
  const events: { event: Event; bytes: number }[] = [];
  let bytes = 0;

  return {
    get bytes() {
      return bytes;
    },
    push(event: Event): void {
      const added = contentBytes(event);
      const last = events.at(-1);
      if (last !== undefined && last.bytes + added <= maxMessageBytes && join(last.event, event)) {
        last.bytes += added;
        bytes += added;
      } else {
        events.push({ event, bytes: eventBytes + added });
        bytes += eventBytes + added;
      }
    },
    take(): Event | undefined {
      const first = events.shift();
      bytes -= first?.bytes ?? 0;
      return first?.event;
    },
    clear(): void {
      events.length = 0;
      bytes = 0;
    },
  };
}

/**
 * The events of `source`, which runs at its own pace whatever its reader does: what the reader has not taken waits here, joined to few messages, up to
 * `maxWaitingBytes`. Beyond that the source is ended, which frees all that it holds, and the reader gets RESOURCE_EXHAUSTED, reason SLOW_READER,
 * instead of the rest: never an answer that looks whole and is not. Leaving early ends the source, by `stop` where it is inside a step.
 */
export async function* readBehind(
  source: AsyncGenerator<Event>,
  maxWaitingBytes: number,
  stop: () => void,
): AsyncGenerator<Event> {
  const backlog = createBacklog();
  let ended = false;
  let failure: { error: unknown } | undefined;
  let wake = () => {};

  const pump = async () => {
    try {
      for await (const event of source) {
        backlog.push(event);
        if (backlog.bytes > maxWaitingBytes) {
          backlog.clear();
          throw new Failure(
            'resource_exhausted',
            `the answer was read too slowly: more than ${maxWaitingBytes} bytes of it waited; read faster, or ask for less`,
            { reason: 'SLOW_READER' },
          );
        }
        wake();
      }
    } catch (error) {
      failure = { error };
    } finally {
      ended = true;
      wake();
    }
  };

  const pumping = pump();
  try {
    for (;;) {
      const event = backlog.take();
      if (event !== undefined) yield event;
      else if (failure !== undefined) throw failure.error;
      else if (ended) return;
      else await new Promise<void>((resolve) => (wake = resolve));
    }
  } finally {
    if (!ended) stop();
    await pumping;
  }
}
