import { createHmac } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { CacheChange } from '@medmesh/engine';
import { Failure, notFound } from '@medmesh/errors';
import type { inference, model as modelProto } from '@medmesh/proto';
import type { Base, Bases } from './bases.ts';

export type KvEventDeps = {
  bases: Bases;
  /** Whether anything of a request outlives it. */
  remembers: boolean;
  /** How much may wait for a watcher that reads slowly. */
  maxUnreadBytes: number;
};

const maxBatchEvents = 4096;
/** Changes of several steps go together: a router gains nothing by knowing sooner. */
const gatherMs = 20;
/** About what an event that waits takes in memory. */
const eventBytes = 128;
/** How often a watched base is looked for, in the forms that it had. */
const lookEveryMs = 1_000;
const firstParent = Buffer.alloc(32);

/** The hash that KvBlock documents. */
export function blockHash(scope: Uint8Array, parent: Uint8Array | undefined, tokens: Uint32Array): Buffer {
  const bytes = Buffer.alloc(tokens.length * 4);
  for (const [i, token] of tokens.entries()) bytes.writeUInt32LE(token, i * 4);
  return createHmac('sha256', scope)
    .update(parent ?? firstParent)
    .update(bytes)
    .digest();
}

/** Turns one cache's changes into events: it knows the hash of every block that is there. */
function createHasher(): (change: CacheChange) => inference.KvEvent {
  const hashes = new Map<number, Buffer>();
  return (change) => {
    if (change.kind === 'removed') {
      const hash = hashes.get(change.node);
      if (hash === undefined) throw new Failure('internal', 'an unknown block was removed', { reason: 'UNFORESEEN' });
      hashes.delete(change.node);
      return { event: { $case: 'removed', value: hash } };
    }
    const parent = hashes.get(change.parent);
    const hash = blockHash(change.scope, parent, change.tokens);
    hashes.set(change.node, hash);
    const block = { hash, parent: parent ?? Buffer.alloc(0), tokenCount: change.tokens.length };
    return { event: { $case: 'stored', value: block } };
  };
}

/** Every form of the base in memory; each has a cache of its own, for other adapters. */
const formsOf = (bases: Bases, record: modelProto.Model): Base[] =>
  bases.all().filter((base) => base.record.digest === record.digest);

/**
 * What the cache of a base remembers: first all of it, then what changes. The engine does not wait for a watcher: one that is further behind than
 * `maxUnreadBytes` is told to begin anew.
 */
export async function* watchKvEvents(
  deps: KvEventDeps,
  request: inference.WatchKvEventsRequest,
  signal: AbortSignal,
): AsyncGenerator<inference.KvEventBatch> {
  if (!deps.remembers)
    throw new Failure(
      'failed_precondition',
      'this server remembers nothing of a request; start it with PREFIX_CACHE=on',
      {
        reason: 'PREFIX_CACHE_OFF',
      },
    );
  const record = await deps.bases.named(request.base, 'base');
  const forms = formsOf(deps.bases, record);
  if (forms.length === 0) throw notFound(`${record.name} in memory`);

  let waiting: CacheChange[][] = forms.map(() => []);
  let waitingCount = 0;
  let snapshotsMissing = forms.length;
  let snapshot: CacheChange[][] = [];
  let gone = false;
  let failure: Failure | undefined;
  let wake = () => {};
  const again = (reason: string, message: string) => new Failure('unavailable', `${message}; watch again`, { reason });
  const take = (form: number, changes: CacheChange[], whole: boolean) => {
    if (failure !== undefined) return;
    if (whole) {
      snapshot[form] = changes;
      snapshotsMissing -= 1;
    } else {
      waiting[form]?.push(...changes);
      waitingCount += changes.length;
      if (waitingCount * eventBytes > deps.maxUnreadBytes)
        failure ??= new Failure(
          'resource_exhausted',
          `the watcher is ${waitingCount} changes behind; watch again, and read faster`,
          { reason: 'SLOW_READER' },
        );
    }
    wake();
  };
  const watches = forms.map(({ model }, form) =>
    model.watchCache(
      (changes, whole) => take(form, changes, whole),
      () => {
        gone = true;
        wake();
      },
    ),
  );
  const look = setInterval(() => {
    const now = formsOf(deps.bases, record);
    if (now.length === 0) gone = true;
    else if (now.length !== forms.length || now.some((form) => !forms.includes(form)))
      failure ??= again('KV_CACHE_CHANGED', `${record.name} is in memory in another form`);
    wake();
  }, lookEveryMs);
  const onAbort = () => wake();
  signal.addEventListener('abort', onAbort, { once: true });

  const hashers = forms.map(createHasher);
  const blockTokenCount = watches[0]?.blockTokens ?? 0;
  let sequence = 0;
  /** Some of the changes at a time, hashed as they are sent. */
  function* batches(changes: CacheChange[][], isSnapshot: boolean): Generator<inference.KvEventBatch> {
    const all = changes.flatMap((list, form) => list.map((change) => ({ change, form })));
    for (let at = 0; at < all.length || (at === 0 && isSnapshot); at += maxBatchEvents) {
      if (failure !== undefined) throw failure;
      const events = all.slice(at, at + maxBatchEvents).flatMap(({ change, form }) => hashers[form]?.(change) ?? []);
      const snapshotComplete = isSnapshot && at + maxBatchEvents >= all.length;
      yield { sequence: sequence++, snapshot: isSnapshot, snapshotComplete, events, blockTokenCount };
    }
  }
  try {
    for (;;) {
      signal.throwIfAborted();
      if (failure !== undefined) throw failure;
      if (gone) {
        const event: inference.KvEvent = { event: { $case: 'cleared', value: {} } };
        yield { sequence: sequence++, snapshot: false, snapshotComplete: false, events: [event], blockTokenCount };
        throw again('KV_CACHE_CHANGED', `${record.name} is gone from memory`);
      }
      if (snapshotsMissing === 0 && snapshot.length > 0) {
        const first = snapshot;
        snapshot = [];
        yield* batches(first, true);
      } else if (snapshotsMissing === 0 && waitingCount > 0) {
        await sleep(gatherMs);
        const changes = waiting;
        waiting = forms.map(() => []);
        waitingCount = 0;
        yield* batches(changes, false);
      } else {
        await new Promise<void>((resolve) => (wake = resolve));
      }
    }
  } finally {
    clearInterval(look);
    signal.removeEventListener('abort', onAbort);
    for (const watch of watches) watch.stop();
  }
}
