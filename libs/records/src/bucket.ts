import { Failure, notFound } from '@medmesh/errors';
import { pause, untilBrokerAnswers } from '@medmesh/events';
import { JetStreamApiError, type JetStreamClient, type JetStreamManager, type StoredMsg } from '@nats-io/jetstream';
import { headers, type NatsConnection, nuid } from '@nats-io/transport-node';
import { checkKey, nameOf } from './keys.ts';
import { etagMismatch } from './names.ts';
import { checkPageSize, makePageToken, readPageToken } from './page-token.ts';
import { type Change, watchKeys } from './watch.ts';

/** How values become bytes. ts-proto messages fit after `.finish()`. */
export type Codec<T> = { encode(value: T): Uint8Array; decode(bytes: Uint8Array): T };

/** A record as it was at `revision`, which grows with every change of the bucket. */
export type Entry<T> = { readonly key: string; readonly value: T; readonly revision: number };

/** A record that is gone. */
export type Deleted = { readonly key: string; readonly deleted: true; readonly revision: number };

export type ListOptions<T> = {
  /** 0 or absent: 50. At most 1000. */
  pageSize?: number;
  /** `nextPageToken` of the page before; empty or absent: the first page. */
  pageToken?: string;
  /** Leaves out what it answers false for; pages stay full. */
  where?: (value: T) => boolean;
  /** Text that a token must have been made with, e.g. the request's filter. */
  scope?: string;
};

export type WriteOptions = {
  /** How long to wait for a broker that is away; 30 s without it. */
  signal?: AbortSignal | undefined;
};

/**
 * The records of one resource type. A record changes only by compare-and-set on its revision: a writer that did not see the latest state is refused.
 * Every method waits while the broker is away, and fails `unavailable` BROKER_UNAVAILABLE if it stays away.
 */
export interface Bucket<T> {
  readonly name: string;
  /** The record, or undefined. Reads what was written last, by whomever. */
  get(key: string): Promise<Entry<T> | undefined>;
  /** Failure `already_exists` RESOURCE_ALREADY_EXISTS; of many concurrent creates, one succeeds. */
  create(key: string, value: T, o?: WriteOptions): Promise<Entry<T>>;
  /** Failure `aborted` ETAG_MISMATCH if the record is no longer at `revision`. */
  update(key: string, value: T, revision: number, o?: WriteOptions): Promise<Entry<T>>;
  /** Reads, applies `change` and writes, again and again until nobody came between. `change` may run several times; undefined leaves the record. */
  modify(key: string, change: (value: T) => T | undefined, o?: WriteOptions): Promise<Entry<T>>;
  /** Failure `not_found` if there is no record; with a revision, `aborted` ETAG_MISMATCH if it moved on. */
  delete(key: string, revision?: number, o?: WriteOptions): Promise<void>;
  /** The records below a key (`keyOf('projects/p/models')`; '' for all), sorted by key. */
  list(prefix: string, o?: ListOptions<T>): Promise<{ entries: Entry<T>[]; nextPageToken: string }>;
  /** The record at this key and those below it, as they are now and then every change, until the signal aborts. Survives restarts of the broker. */
  watch(prefix: string, signal: AbortSignal): AsyncIterable<Entry<T> | Deleted>;
}

const wrongLastSequence = 10071;
const mostAttempts = 64;
/** How many values of a page are read at once. */
const readsInFlight = 16;
const deletedHeader = 'KV-Operation';

/** What the broker keeps under a key: a value, or the mark that there was one. */
type Stored = { revision: number; data: Uint8Array | undefined };

export type BucketDeps = { nc: NatsConnection; js: JetStreamClient; manager: JetStreamManager };

export function createBucket<T>(deps: BucketDeps, name: string, codec: Codec<T>): Bucket<T> {
  const { js, manager } = deps;
  const stream = `KV_${name}`;
  const subjectOf = (key: string): string => `$KV.${name}.${key}`;

  function decode(key: string, data: Uint8Array): T {
    try {
      return codec.decode(data);
    } catch (cause) {
      throw new Failure(
        'data_loss',
        `the record ${nameOf(key)} cannot be read: ${data.length} bytes that are not of its type`,
        {
          reason: 'RECORD_CORRUPT',
          cause,
        },
      );
    }
  }

  async function read(key: string): Promise<Stored | undefined> {
    checkKey(key);
    const message: StoredMsg | null = await untilBrokerAnswers(`read ${nameOf(key)}`, () =>
      manager.streams.getMessage(stream, { last_by_subj: subjectOf(key) }),
    );
    if (message === null) return undefined;
    const deleted = (message.header?.get(deletedHeader) ?? '') !== '';
    return { revision: message.seq, data: deleted ? undefined : message.data };
  }

  /**
   * Writes if the key is still at `expected` (0: never written). False if it is not.
   * The message id is what makes it safe to repeat after a lost answer: the broker stores it once and answers a repeat with the first sequence.
   */
  async function write(
    key: string,
    data: Uint8Array,
    expected: number,
    mark: 'DEL' | undefined,
    o: WriteOptions,
  ): Promise<number | undefined> {
    checkKey(key);
    const limit = deps.nc.info?.max_payload ?? Number.POSITIVE_INFINITY;
    // Room for the headers.
    if (data.length > limit - 1024) {
      throw new Failure(
        'resource_exhausted',
        `the record ${nameOf(key)} takes ${data.length} bytes; the broker allows ${limit - 1024}`,
        {
          reason: 'RECORD_TOO_LARGE',
        },
      );
    }
    const msgID = nuid.next();
    const h = headers();
    if (mark !== undefined) h.set(deletedHeader, mark);
    try {
      const ack = await untilBrokerAnswers(
        `write ${nameOf(key)}`,
        () => js.publish(subjectOf(key), data, { msgID, headers: h, expect: { lastSubjectSequence: expected } }),
        { signal: o.signal },
      );
      return ack.seq;
    } catch (error) {
      if (error instanceof JetStreamApiError && error.code === wrongLastSequence) return undefined;
      throw error;
    }
  }

  const exists = (key: string): Failure =>
    new Failure('already_exists', `${nameOf(key)} exists already`, {
      reason: 'RESOURCE_ALREADY_EXISTS',
      metadata: { resource: nameOf(key) },
    });

  async function get(key: string): Promise<Entry<T> | undefined> {
    const stored = await read(key);
    if (stored?.data === undefined) return undefined;
    return { key, value: decode(key, stored.data), revision: stored.revision };
  }

  async function create(key: string, value: T, o: WriteOptions = {}): Promise<Entry<T>> {
    const data = codec.encode(value);
    let revision = await write(key, data, 0, undefined, o);
    if (revision === undefined) {
      // There is something; the mark of a deleted record may be replaced.
      const stored = await read(key);
      if (stored?.data !== undefined) throw exists(key);
      revision = await write(key, data, stored?.revision ?? 0, undefined, o);
      if (revision === undefined) throw exists(key);
    }
    return { key, value, revision };
  }

  async function update(key: string, value: T, revision: number, o: WriteOptions = {}): Promise<Entry<T>> {
    const written = await write(key, codec.encode(value), revision, undefined, o);
    if (written === undefined) throw etagMismatch();
    return { key, value, revision: written };
  }

  async function modify(key: string, change: (value: T) => T | undefined, o: WriteOptions = {}): Promise<Entry<T>> {
    for (let attempt = 0; attempt < mostAttempts; attempt += 1) {
      o.signal?.throwIfAborted();
      const entry = await get(key);
      if (entry === undefined) throw notFound(nameOf(key));
      const value = change(entry.value);
      if (value === undefined) return entry;
      const revision = await write(key, codec.encode(value), entry.revision, undefined, o);
      if (revision !== undefined) return { key, value, revision };
      await pause(Math.random() * Math.min(2 * 2 ** attempt, 100), o.signal);
    }
    throw new Failure('aborted', `${nameOf(key)} is changed by too many at once; try again`, {
      reason: 'PARALLEL_OPERATION',
      retryAfterMs: 1000,
    });
  }

  async function remove(key: string, revision?: number, o: WriteOptions = {}): Promise<void> {
    for (let attempt = 0; attempt < mostAttempts; attempt += 1) {
      const stored = await read(key);
      if (stored?.data === undefined) throw notFound(nameOf(key));
      if (revision !== undefined && stored.revision !== revision) throw etagMismatch();
      if ((await write(key, new Uint8Array(), stored.revision, 'DEL', o)) !== undefined) return;
      await pause(Math.random() * Math.min(2 * 2 ** attempt, 100), o.signal);
    }
    throw new Failure('aborted', `${nameOf(key)} is changed by too many at once; try again`, {
      reason: 'PARALLEL_OPERATION',
    });
  }

  /** Every key below the prefix, sorted; keys of deleted records too. */
  async function keysBelow(prefix: string): Promise<string[]> {
    const filter = prefix === '' ? '>' : `${prefix}.>`;
    const info = await untilBrokerAnswers(`list ${name}`, () =>
      manager.streams.info(stream, { subjects_filter: subjectOf(filter) }),
    );
    const skip = subjectOf('').length;
    return Object.keys(info.state.subjects ?? {})
      .map((subject) => subject.slice(skip))
      .sort();
  }

  async function list(prefix: string, o: ListOptions<T> = {}): Promise<{ entries: Entry<T>[]; nextPageToken: string }> {
    if (prefix !== '') checkKey(prefix);
    const pageSize = checkPageSize(o.pageSize ?? 0);
    const scope = { bucket: name, prefix, scope: o.scope ?? '' };
    const after = o.pageToken === undefined || o.pageToken === '' ? '' : readPageToken(scope, o.pageToken);
    const keys = (await keysBelow(prefix)).filter((key) => key > after);
    const entries: Entry<T>[] = [];
    // One more than the page tells whether there is another page.
    for (let i = 0; i < keys.length && entries.length <= pageSize; i += readsInFlight) {
      const batch = await Promise.all(keys.slice(i, i + readsInFlight).map(get));
      for (const entry of batch) {
        if (entry !== undefined && (o.where?.(entry.value) ?? true)) entries.push(entry);
      }
    }
    if (entries.length <= pageSize) return { entries, nextPageToken: '' };
    const page = entries.slice(0, pageSize);
    return { entries: page, nextPageToken: makePageToken(scope, page.at(-1)!.key) };
  }

  async function* watch(prefix: string, signal: AbortSignal): AsyncGenerator<Entry<T> | Deleted> {
    if (prefix !== '') checkKey(prefix);
    for await (const change of watchKeys(deps, { stream, bucket: name, prefix, read, signal }))
      yield fromChange(change);
  }

  const fromChange = ({ key, data, revision }: Change): Entry<T> | Deleted =>
    data === undefined ? { key, deleted: true, revision } : { key, value: decode(key, data), revision };

  return { name, get, create, update, modify, delete: remove, list, watch };
}
