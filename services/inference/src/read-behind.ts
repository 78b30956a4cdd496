import { Failure } from '@medmesh/errors';
import type { inference } from '@medmesh/proto';

/** Deltas go out together: at most so long, or so many tokens, apart. The first of a choice goes at once. */
const maxDelayMs = 25;
const maxTokens = 8;
/** Text and ids of one message, when the reader is behind and much has gathered. */
const maxMessageBytes = 32_768;

type Event = inference.GenerateEvent;

const deltaOf = (event: Event) => (event.event?.$case === 'delta' ? event.event.value : undefined);

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
  /** `urgent`: it need not wait for company. */
  const events: { event: Event; bytes: number; since: number; urgent: boolean }[] = [];
  const begun = new Set<number>();
  let bytes = 0;

  return {
    get bytes() {
      return bytes;
    },
    push(event: Event): void {
      const added = contentBytes(event);
      const delta = deltaOf(event);
      const last = events.at(-1);
      const tail = last === undefined ? undefined : deltaOf(last.event);
      const urgent = delta === undefined || !begun.has(delta.choice);
      if (delta !== undefined) begun.add(delta.choice);
      const joins =
        last !== undefined &&
        delta !== undefined &&
        tail?.choice === delta.choice &&
        tail.channel === delta.channel &&
        last.bytes + added <= maxMessageBytes;
      if (!joins) {
        // The lists are this backlog's own from here on: what joins is put into them.
        const own: Event = delta === undefined ? event : { event: { $case: 'delta', value: { ...delta } } };
        events.push({ event: own, bytes: eventBytes + added, since: performance.now(), urgent });
        bytes += eventBytes + added;
        return;
      }
      tail.text += delta.text;
      tail.tokenIds.push(...delta.tokenIds);
      tail.logprobs.push(...delta.logprobs);
      last.bytes += added;
      bytes += added;
    },
    /** Milliseconds until the first of it should go out; 0: now. Undefined: there is nothing. */
    dueInMs(): number | undefined {
      const first = events[0];
      if (first === undefined) return undefined;
      if (events.length > 1 || first.urgent || (deltaOf(first.event)?.tokenIds.length ?? 0) >= maxTokens) return 0;
      return Math.max(0, maxDelayMs - (performance.now() - first.since));
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

  let timer: NodeJS.Timeout | undefined;
  /** Until something happens, or what is there is due. */
  const wait = (dueMs: number | undefined) =>
    new Promise<void>((resolve) => {
      wake = () => {
        clearTimeout(timer);
        timer = undefined;
        resolve();
      };
      if (dueMs !== undefined) timer = setTimeout(wake, Math.ceil(dueMs));
    });

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
        if (timer === undefined || backlog.dueInMs() === 0) wake();
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
      const due = backlog.dueInMs();
      if (due === 0 || (due !== undefined && ended)) {
        const event = backlog.take();
        if (event !== undefined) yield event;
      } else if (ended) {
        if (failure !== undefined) throw failure.error;
        return;
      } else {
        await wait(due);
      }
    }
  } finally {
    clearTimeout(timer);
    if (!ended) stop();
    await pumping;
  }
}
