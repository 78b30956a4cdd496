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
 * The events that `source` emits, which runs at its own pace whatever its reader does: what the reader has not taken waits here, joined to few messages,
 * up to `maxWaitingBytes`. Beyond that the source is told to stop, by its signal, and the reader gets RESOURCE_EXHAUSTED, reason SLOW_READER, instead of
 * the rest: never an answer that looks whole and is not. Leaving early stops the source too, and waits for its end.
 */
export async function* readBehind(
  source: (emit: (event: Event) => void, stopped: AbortSignal) => Promise<void>,
  maxWaitingBytes: number,
): AsyncGenerator<Event> {
  const backlog = createBacklog();
  const stop = new AbortController();
  let ended = false;
  let failure: { error: unknown } | undefined;
  let wake = () => {};

  const emit = (event: Event) => {
    if (stop.signal.aborted) return;
    backlog.push(event);
    if (backlog.bytes > maxWaitingBytes) {
      backlog.clear();
      const error = new Failure(
        'resource_exhausted',
        `the answer was read too slowly: more than ${maxWaitingBytes} bytes of it waited; read faster, or ask for less`,
        { reason: 'SLOW_READER' },
      );
      failure = { error };
      stop.abort(error);
    }
    wake();
  };
  const running = source(emit, stop.signal)
    .catch((error: unknown) => {
      failure ??= { error };
    })
    .finally(() => {
      ended = true;
      wake();
    });
  try {
    for (;;) {
      const event = backlog.take();
      if (event !== undefined) yield event;
      else if (ended && failure !== undefined) throw failure.error;
      else if (ended) return;
      else await new Promise<void>((resolve) => (wake = resolve));
    }
  } finally {
    if (!ended) stop.abort();
    await running;
  }
}
