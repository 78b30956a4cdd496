import type { Failure } from '@medmesh/errors';
import { type NatsServer, startNats, waitFor } from '@medmesh/testkit';
import { connect, type NatsConnection } from '@nats-io/transport-node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Bucket, type Codec, type Deleted, type Entry, keyOf, openRecords, type Records } from './index.ts';

const text: Codec<string> = { encode: (value) => Buffer.from(value), decode: (bytes) => Buffer.from(bytes).toString() };

let nats: NatsServer;
let nc: NatsConnection;
let records: Records;
beforeAll(async () => {
  nats = await startNats();
  nc = await connect({ servers: nats.url, maxReconnectAttempts: -1, reconnectTimeWait: 50 });
  records = await openRecords(nc);
});
afterAll(async () => {
  await nc.close();
  await nats.stop();
});

let buckets = 0;
const newBucket = (): Promise<Bucket<string>> => {
  buckets += 1;
  return records.bucket(`test-${buckets}`, text);
};

test('what was created can be read, and a bucket opened twice is the same', async () => {
  const bucket = await newBucket();
  const key = keyOf('projects/p/models/qwen2.5-7b');
  const created = await bucket.create(key, 'one');
  const again = await records.bucket(bucket.name, text);
  expect(await again.get(key)).toEqual({ key, value: 'one', revision: created.revision });
  expect(await bucket.get(keyOf('projects/p/models/other'))).toBeUndefined();
});

test('a resource name in place of a key is refused with a hint', async () => {
  const bucket = await newBucket();
  await expect(bucket.get('projects/p')).rejects.toMatchObject({ code: 'internal', reason: 'RECORD_KEY_INVALID' });
  await expect(bucket.get('projects.*')).rejects.toMatchObject({ reason: 'RECORD_KEY_INVALID' });
});

test('of 32 concurrent creates exactly one wins and the others are told that the record exists', async () => {
  const bucket = await newBucket();
  const results = await Promise.allSettled(Array.from({ length: 32 }, (_, i) => bucket.create('k', `writer ${i}`)));
  const won = results.filter((result) => result.status === 'fulfilled');
  expect(won).toHaveLength(1);
  const refused = results
    .filter((result) => result.status === 'rejected')
    .map((result) => (result.reason as Failure).reason);
  expect(refused).toEqual(Array.from({ length: 31 }, () => 'RESOURCE_ALREADY_EXISTS'));
  expect((await bucket.get('k'))?.value).toBe(won[0]?.value.value);
});

test('an update at an old revision is refused and changes nothing', async () => {
  const bucket = await newBucket();
  const first = await bucket.create('k', 'one');
  const second = await bucket.update('k', 'two', first.revision);
  expect(second.revision).toBeGreaterThan(first.revision);
  await expect(bucket.update('k', 'lost', first.revision)).rejects.toMatchObject({
    code: 'aborted',
    reason: 'ETAG_MISMATCH',
  });
  expect((await bucket.get('k'))?.value).toBe('two');
});

test('concurrent modifications are all applied, one after the other', async () => {
  const bucket = await newBucket();
  await bucket.create('counter', '0');
  await Promise.all(Array.from({ length: 20 }, () => bucket.modify('counter', (value) => String(Number(value) + 1))));
  expect((await bucket.get('counter'))?.value).toBe('20');
});

test('a modification that answers undefined leaves the record at its revision', async () => {
  const bucket = await newBucket();
  const created = await bucket.create('k', 'one');
  expect(await bucket.modify('k', () => undefined)).toEqual(created);
  await expect(bucket.modify('absent', (value) => value)).rejects.toMatchObject({ code: 'not_found' });
});

test('a deleted record is gone, cannot be deleted again, and may be created anew', async () => {
  const bucket = await newBucket();
  const created = await bucket.create('k', 'one');
  await expect(bucket.delete('k', created.revision + 1)).rejects.toMatchObject({
    code: 'aborted',
    reason: 'ETAG_MISMATCH',
  });
  await bucket.delete('k', created.revision);
  expect(await bucket.get('k')).toBeUndefined();
  await expect(bucket.delete('k')).rejects.toMatchObject({ code: 'not_found' });
  await bucket.create('k', 'two');
  expect((await bucket.get('k'))?.value).toBe('two');
});

test('of many creates over a deleted record exactly one wins', async () => {
  const bucket = await newBucket();
  await bucket.create('k', 'one');
  await bucket.delete('k');
  const results = await Promise.allSettled(Array.from({ length: 16 }, (_, i) => bucket.create('k', String(i))));
  expect(results.filter((result) => result.status === 'fulfilled')).toHaveLength(1);
});

test('a list gives the children of a parent in order, page by page, and not the parent or its neighbours', async () => {
  const bucket = await newBucket();
  const names = ['a', 'b.c', 'c', 'd', 'e'].map((id) => `projects/p/models/${id}`);
  for (const name of [...names].reverse()) await bucket.create(keyOf(name), name);
  await bucket.create(keyOf('projects/p/models'), 'the parent');
  await bucket.create(keyOf('projects/p/models2/x'), 'a neighbour');
  await bucket.create(keyOf('projects/q/models/x'), 'another project');

  const seen: string[] = [];
  let pageToken = '';
  do {
    const page = await bucket.list(keyOf('projects/p/models'), { pageSize: 2, pageToken });
    expect(page.entries.length).toBeLessThanOrEqual(2);
    seen.push(...page.entries.map((entry) => entry.value));
    pageToken = page.nextPageToken;
  } while (pageToken !== '');
  expect(seen).toEqual(names);
  expect((await bucket.list('')).entries).toHaveLength(8);
});

test('records that come and go while a list is read neither repeat nor hide the others', async () => {
  const bucket = await newBucket();
  for (const id of ['b', 'd', 'f', 'h']) await bucket.create(keyOf(`p/${id}`), id);
  const first = await bucket.list(keyOf('p'), { pageSize: 2 });
  expect(first.entries.map((entry) => entry.value)).toEqual(['b', 'd']);
  await bucket.create(keyOf('p/a'), 'a');
  await bucket.create(keyOf('p/e'), 'e');
  await bucket.delete(keyOf('p/d'));
  const second = await bucket.list(keyOf('p'), { pageSize: 10, pageToken: first.nextPageToken });
  expect(second.entries.map((entry) => entry.value)).toEqual(['e', 'f', 'h']);
  expect(second.nextPageToken).toBe('');
});

test('a filter leaves records out without shortening the pages', async () => {
  const bucket = await newBucket();
  for (let i = 0; i < 60; i += 1) await bucket.create(keyOf(`p/${String(i).padStart(2, '0')}`), String(i));
  const page = await bucket.list(keyOf('p'), {
    pageSize: 10,
    where: (value) => Number(value) % 5 === 0,
    scope: 'fives',
  });
  expect(page.entries.map((entry) => entry.value)).toEqual(['0', '5', '10', '15', '20', '25', '30', '35', '40', '45']);
  const rest = await bucket.list(keyOf('p'), {
    where: (value) => Number(value) % 5 === 0,
    scope: 'fives',
    pageToken: page.nextPageToken,
  });
  expect(rest.entries.map((entry) => entry.value)).toEqual(['50', '55']);
  await expect(bucket.list(keyOf('p'), { pageToken: page.nextPageToken })).rejects.toMatchObject({
    reason: 'PAGE_TOKEN_MISMATCH',
  });
});

test('a watch tells what is there and then every change, also after the broker was killed', async () => {
  const bucket = await newBucket();
  await bucket.create(keyOf('p/a'), 'a1');
  await bucket.create(keyOf('q/x'), 'elsewhere');
  const stop = new AbortController();
  const seen: (Entry<string> | Deleted)[] = [];
  const watching = (async () => {
    for await (const change of bucket.watch(keyOf('p'), stop.signal)) seen.push(change);
  })();
  await waitFor(() => seen.length === 1, { what: 'the first state' });
  await bucket.modify(keyOf('p/a'), () => 'a2');
  await waitFor(() => seen.length === 2, { what: 'a change' });

  await nats.kill();
  await nats.restart();
  await bucket.create(keyOf('p/b'), 'b1');
  await bucket.delete(keyOf('p/a'));
  await waitFor(() => seen.length === 4, { what: 'the changes after the restart', timeoutMs: 20_000 });
  expect(
    seen.map((change) => ('deleted' in change ? `${change.key} deleted` : `${change.key} ${change.value}`)),
  ).toEqual(['p.a a1', 'p.a a2', 'p.b b1', 'p.a deleted']);
  stop.abort();
  await watching;
});

test('a watch misses nothing that is written while it begins', async () => {
  const bucket = await newBucket();
  for (let i = 0; i < 60; i += 1) {
    const { key, revision } = await bucket.create(keyOf(`p/${i}`), 'before');
    const stop = new AbortController();
    const seen: string[] = [];
    const watching = (async () => {
      for await (const change of bucket.watch(key, stop.signal)) {
        seen.push('deleted' in change ? 'deleted' : change.value);
        if (seen.at(-1) === 'after') return;
      }
    })();
    // At any point of its beginning.
    await new Promise((resolve) => setTimeout(resolve, i % 4));
    await bucket.update(key, 'after', revision);
    await watching;
    expect([['after'], ['before', 'after']]).toContainEqual(seen);
    stop.abort();
  }
});

test('a write waits for a broker that is away and is stored once', async () => {
  const bucket = await newBucket();
  const created = await bucket.create('k', 'one');
  await nats.kill();
  const pending = bucket.update('k', 'two', created.revision);
  await new Promise((resolve) => setTimeout(resolve, 500));
  await nats.restart();
  const updated = await pending;
  expect(updated.value).toBe('two');
  expect(await bucket.get('k')).toEqual(updated);
});

test('a write gives up when its caller does', async () => {
  const bucket = await newBucket();
  const created = await bucket.create('k', 'one');
  await nats.kill();
  try {
    await expect(bucket.update('k', 'two', created.revision, { signal: AbortSignal.timeout(700) })).rejects.toThrow(
      /timeout|aborted/i,
    );
  } finally {
    await nats.restart();
  }
  await waitFor(() => bucket.get('k'), { what: 'the broker' });
});

test('a record that cannot be decoded is reported by name, and one that is too large is refused', async () => {
  const strict: Codec<string> = {
    encode: (value) => Buffer.from(value),
    decode: (bytes) => {
      throw new SyntaxError(`unexpected ${Buffer.from(bytes).toString()}`);
    },
  };
  const bucket = await records.bucket('broken', strict);
  await bucket.create(keyOf('p/a'), 'secret content');
  const failure = await bucket.get(keyOf('p/a')).catch((error: unknown) => error);
  expect(failure).toMatchObject({ code: 'data_loss', reason: 'RECORD_CORRUPT' });
  expect((failure as Error).message).toContain('p/a');
  expect((failure as Error).message).not.toContain('secret content');
  await expect(bucket.create('big', 'x'.repeat(2 << 20))).rejects.toMatchObject({ reason: 'RECORD_TOO_LARGE' });
});
