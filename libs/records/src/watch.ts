import { readStream, untilBrokerAnswers } from '@medmesh/events';
import type { JetStreamClient, JetStreamManager } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/transport-node';

/** A write to a key; `data` is undefined when the record was deleted. */
export type Change = { key: string; data: Uint8Array | undefined; revision: number };

export type WatchOptions = {
  stream: string;
  bucket: string;
  prefix: string;
  /** The newest write of one key, if there is any. */
  read: (key: string) => Promise<Omit<Change, 'key'> | undefined>;
  signal: AbortSignal;
};

/**
 * The newest write of the key and of each key below it ('' for all), then every later one.
 * The present is read key by key, and what follows from the sequence before that: a consumer that the broker itself starts at the newest message of each
 * subject (nats-server 2.10) misses what is written while it is made.
 */
export async function* watchKeys(
  deps: { nc: NatsConnection; js: JetStreamClient; manager: JetStreamManager },
  o: WatchOptions,
): AsyncGenerator<Change> {
  const root = `$KV.${o.bucket}.`;
  const subjects = o.prefix === '' ? [`${root}>`] : [`${root}${o.prefix}`, `${root}${o.prefix}.>`];
  const now = await present(deps.manager, o.stream, root, subjects, o.signal).catch(quietlyIf(o.signal));
  if (now === undefined) return;
  const { afterSequence, keys } = now;
  const seen = new Map<string, number>();
  for (const key of keys) {
    if (o.signal.aborted) return;
    const newest = await o.read(key);
    // What was deleted before the watch began concerns nobody.
    if (newest === undefined || (newest.data === undefined && newest.revision <= afterSequence)) continue;
    seen.set(key, newest.revision);
    yield { key, ...newest };
  }
  const messages = readStream({ ...deps, stream: o.stream, subjects, afterSequence, follow: true, signal: o.signal });
  for await (const message of messages) {
    const key = message.subject.slice(root.length);
    // Written between the two readings: told already.
    if (message.seq <= (seen.get(key) ?? 0)) continue;
    seen.delete(key);
    const deleted = (message.headers?.get('KV-Operation') ?? '') !== '';
    yield { key, data: deleted ? undefined : message.data, revision: message.seq };
  }
}

/** A watch whose signal aborts has ended, not failed. */
const quietlyIf =
  (signal: AbortSignal) =>
  (error: unknown): undefined => {
    if (!signal.aborted) throw error;
  };

/** The last sequence of the stream, and the keys there are, sorted. */
async function present(
  manager: JetStreamManager,
  stream: string,
  root: string,
  subjects: string[],
  signal: AbortSignal,
) {
  const keys: string[] = [];
  let afterSequence: number | undefined;
  for (const filter of subjects) {
    const { state } = await untilBrokerAnswers(
      `look at ${stream}`,
      () => manager.streams.info(stream, { subjects_filter: filter }),
      { signal },
    );
    // The first look's: what comes after it is told by the second reading.
    afterSequence ??= state.last_seq;
    keys.push(...Object.keys(state.subjects ?? {}).map((subject) => subject.slice(root.length)));
  }
  return { afterSequence: afterSequence ?? 0, keys: keys.sort() };
}
