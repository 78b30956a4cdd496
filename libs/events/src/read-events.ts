import { jetstream, jetstreamManager } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/transport-node';
import { answerTimeoutMs } from './broker.ts';
import { readStream } from './read-stream.ts';
import { streamOf } from './streams.ts';

export type ReadEventsOptions = {
  nc: NatsConnection;
  /** A subject, with wildcards if need be, or several of one stream. */
  subject: string | readonly string[];
  /** The cursor: the sequence of the last message that was seen, 0 for none. */
  afterSequence: number;
  /** Wait for what comes, or end after what is there. */
  follow: boolean;
  signal: AbortSignal;
};

export type StoredEvent = {
  sequence: number;
  subject: string;
  data: Uint8Array;
  headers: ReadonlyMap<string, string>;
  time: Date;
};

/**
 * The events after a cursor, in the order they were stored, each once. Restarts of the broker are not noticed; a reader that restarts itself goes on
 * with the sequence it saw last. Ends quietly when the signal aborts.
 */
export async function* readEvents(o: ReadEventsOptions): AsyncGenerator<StoredEvent> {
  if (o.signal.aborted) return;
  const subjects = typeof o.subject === 'string' ? [o.subject] : [...o.subject];
  const { nc, follow, signal, afterSequence } = o;
  const js = jetstream(nc, { timeout: answerTimeoutMs });
  // checkAPI asks the server whether JetStream is on, which was settled when the connection was made.
  const manager = await jetstreamManager(nc, { timeout: answerTimeoutMs, checkAPI: false });
  const stream = streamOf(subjects[0]!);
  for await (const message of readStream({ nc, js, manager, stream, subjects, afterSequence, follow, signal })) {
    yield {
      sequence: message.seq,
      subject: message.subject,
      data: message.data,
      headers: headersOf(message.headers),
      time: message.time,
    };
  }
}

/** NATS headers as a map; names as they were sent. */
export function headersOf(h: { keys(): string[]; get(name: string): string } | undefined): ReadonlyMap<string, string> {
  return new Map((h?.keys() ?? []).map((name) => [name, h!.get(name)]));
}
