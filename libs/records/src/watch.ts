import { readStream } from '@medmesh/events';
import type { JetStreamClient, JetStreamManager } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/transport-node';

/** A write to a key; `data` is undefined when the record was deleted. */
export type Change = { key: string; data: Uint8Array | undefined; revision: number };

export type WatchOptions = { stream: string; bucket: string; prefix: string; signal: AbortSignal };

/** The newest write of the key and of each key below it ('' for all), then every later one. */
export async function* watchKeys(
  deps: { nc: NatsConnection; js: JetStreamClient; manager: JetStreamManager },
  o: WatchOptions,
): AsyncGenerator<Change> {
  const root = `$KV.${o.bucket}.`;
  const subjects = o.prefix === '' ? [`${root}>`] : [`${root}${o.prefix}`, `${root}${o.prefix}.>`];
  const messages = readStream({
    ...deps,
    stream: o.stream,
    subjects,
    start: 'newest-of-each-subject',
    follow: true,
    signal: o.signal,
  });
  for await (const message of messages) {
    const deleted = (message.headers?.get('KV-Operation') ?? '') !== '';
    yield { key: message.subject.slice(root.length), data: deleted ? undefined : message.data, revision: message.seq };
  }
}
