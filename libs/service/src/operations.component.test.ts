import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import { connectNats, createPublisher, ensureStreams } from '@medmesh/events';
import { createLogger } from '@medmesh/log';
import type { longrunning } from '@medmesh/proto';
import { openRecords } from '@medmesh/records';
import { fromStatus } from '@medmesh/rpc';
import { type NatsServer, startNats, waitFor } from '@medmesh/testkit';
import type { NatsConnection } from '@nats-io/transport-node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createOperations, type Operations, type Packed } from './index.ts';

const log = createLogger({ service: 'test', level: 'silent' });
let nats: NatsServer;
let nc: NatsConnection;
let operations: Operations;
beforeAll(async () => {
  nats = await startNats();
  nc = await connectNats({ url: nats.url, name: 'test', log });
  await ensureStreams(nc);
  operations = await createOperations({ nc, log, records: await openRecords(nc), publisher: createPublisher(nc) });
});
afterAll(async () => {
  await nc.close();
  await nats.stop();
});

let kinds = 0;
/** A kind that no other test uses; one with a dot, as services name theirs. */
const newKind = (): string => `test.kind-${++kinds}`;
const packed = (text: string): Packed => ({ typeUrl: 'type.googleapis.com/test.v1.Text', bytes: Buffer.from(text) });
const textOf = (any: { value: Uint8Array } | undefined): string => Buffer.from(any?.value ?? []).toString();
const soon = { seconds: 15, nanos: 0 };

function outcome(operation: longrunning.Operation): string {
  if (!operation.done) return 'running';
  if (operation.result?.$case === 'response') return `response ${textOf(operation.result.value)}`;
  const failure = fromStatus((operation.result as { value: Parameters<typeof fromStatus>[0] }).value);
  return `error ${failure.code} ${failure.reason}`;
}

test('an operation is started, shows how far it is, and ends with its response', async () => {
  const kind = newKind();
  const proceed = Promise.withResolvers<void>();
  const started = await operations.start({ kind, project: 'p', request: packed('hello'), metadata: packed('queued') });
  expect(started).toMatchObject({ name: expect.stringMatching(/^operations\/[0-9a-f-]{36}$/), done: false });
  expect(textOf(started.metadata)).toBe('queued');
  const worker = await operations.run(kind, async (run) => {
    await run.update(packed('half'));
    await proceed.promise;
    return packed(Buffer.from(run.request).toString().toUpperCase());
  });
  await waitFor(async () => textOf((await operations.get(started.name)).metadata) === 'half', { what: 'progress' });
  const waiting = operations.wait(started.name, soon);
  proceed.resolve();
  const done = await waiting;
  expect(outcome(done)).toBe('response HELLO');
  expect(done.result).toMatchObject({ value: { typeUrl: 'type.googleapis.com/test.v1.Text' } });
  expect(await operations.get(started.name)).toEqual(done);
  await worker.stop();
});

test('waiting ends with the time allowed, and with the signal', async () => {
  const { name } = await operations.start({ kind: newKind(), project: 'p', request: packed('x') });
  const began = performance.now();
  expect((await operations.wait(name, { seconds: 0, nanos: 3e8 })).done).toBe(false);
  expect(performance.now() - began).toBeGreaterThan(250);
  expect((await operations.wait(name, { seconds: 0, nanos: 0 })).done).toBe(false);
  await expect(operations.wait(name, undefined, AbortSignal.timeout(100))).rejects.toMatchObject({
    name: 'TimeoutError',
  });
});

test('a failure that cannot pass lands in the operation with its reason and fields', async () => {
  const kind = newKind();
  let runs = 0;
  const worker = await operations.run(kind, async () => {
    runs += 1;
    throw new Failure('invalid_argument', 'tensor is truncated', {
      reason: 'MODEL_INVALID',
      fields: [{ field: 'source', description: 'bad' }],
      metadata: { tensor: 'a' },
    });
  });
  const { name } = await operations.start({ kind, project: 'p', request: packed('x') });
  const done = await operations.wait(name, soon);
  expect(outcome(done)).toBe('error invalid_argument MODEL_INVALID');
  const failure = fromStatus((done.result as { value: Parameters<typeof fromStatus>[0] }).value);
  expect(failure.message).toBe('tensor is truncated');
  expect(failure.fields).toEqual([{ field: 'source', description: 'bad' }]);
  expect(failure.metadata).toEqual({ tensor: 'a' });
  expect(runs).toBe(1);
  await worker.stop();
});

test('an error nobody foresaw ends the operation without its text', async () => {
  const kind = newKind();
  const worker = await operations.run(kind, async () => {
    throw new TypeError('cannot read the row of Mrs Smith');
  });
  const { name } = await operations.start({ kind, project: 'p', request: packed('x') });
  const done = await operations.wait(name, soon);
  expect(outcome(done)).toBe('error internal UNFORESEEN');
  expect(JSON.stringify(done)).not.toContain('Smith');
  await worker.stop();
});

test('a failure that may pass is tried again', async () => {
  const kind = newKind();
  let runs = 0;
  const worker = await operations.run(kind, async () => {
    runs += 1;
    if (runs === 1) throw new Failure('unavailable', 'the store is away', { retryAfterMs: 50 });
    return packed('done');
  });
  const { name } = await operations.start({ kind, project: 'p', request: packed('x') });
  expect(outcome(await operations.wait(name, soon))).toBe('response done');
  expect(runs).toBe(2);
  await worker.stop();
});

test('a failure that does not pass ends the operation after five attempts', async () => {
  const kind = newKind();
  let runs = 0;
  const worker = await operations.run(kind, async () => {
    runs += 1;
    throw new Failure('unavailable', 'the store is away', { reason: 'STORE_UNAVAILABLE', retryAfterMs: 10 });
  });
  const { name } = await operations.start({ kind, project: 'p', request: packed('x') });
  expect(outcome(await operations.wait(name, soon))).toBe('error unavailable STORE_UNAVAILABLE');
  expect(runs).toBe(5);
  await worker.stop();
});

test('cancelling aborts the handler wherever it runs, and the operation is cancelled', async () => {
  const kind = newKind();
  const begun = Promise.withResolvers<void>();
  const worker = await operations.run(kind, async (run) => {
    begun.resolve();
    await sleep(60_000, undefined, { signal: run.signal });
    return packed('never');
  });
  const { name } = await operations.start({ kind, project: 'p', request: packed('x') });
  await begun.promise;
  await operations.cancel(name);
  expect(outcome(await operations.wait(name, soon))).toBe('error cancelled OPERATION_CANCELLED');
  await operations.cancel(name);
  await worker.stop();
});

test('an operation that is cancelled before anybody began is done at once and never runs', async () => {
  const kind = newKind();
  const { name } = await operations.start({ kind, project: 'p', request: packed('x') });
  await operations.cancel(name);
  expect(outcome(await operations.get(name))).toBe('error cancelled OPERATION_CANCELLED');
  let runs = 0;
  const worker = await operations.run(kind, async () => {
    runs += 1;
    return packed('never');
  });
  const next = await operations.start({ kind, project: 'p', request: packed('y') });
  await operations.wait(next.name, soon);
  expect(runs).toBe(1);
  await worker.stop();
});

test('a handler that finishes although it was cancelled has finished', async () => {
  const kind = newKind();
  const begun = Promise.withResolvers<void>();
  const worker = await operations.run(kind, async (run) => {
    begun.resolve();
    await once(run.signal, 'abort');
    return packed('too late to stop');
  });
  const { name } = await operations.start({ kind, project: 'p', request: packed('x') });
  await begun.promise;
  await operations.cancel(name);
  expect(outcome(await operations.wait(name, soon))).toBe('response too late to stop');
  await worker.stop();
});

test('a worker that stops hands its operation to the next one', async () => {
  const kind = newKind();
  const begun = Promise.withResolvers<void>();
  const first = await operations.run(kind, async (run) => {
    begun.resolve();
    await sleep(60_000, undefined, { signal: run.signal });
    return packed('never');
  });
  const { name } = await operations.start({ kind, project: 'p', request: packed('x') });
  await begun.promise;
  await first.stop();
  expect(outcome(await operations.get(name))).toBe('running');
  const second = await operations.run(kind, async () => packed('by the second'));
  expect(outcome(await operations.wait(name, soon))).toBe('response by the second');
  await second.stop();
});

test('the same request_id starts one operation, and shows its state to whoever repeats', async () => {
  const kind = newKind();
  const o = { kind, project: 'p', request: packed('x'), requestId: randomUUID() };
  const all = await Promise.all(Array.from({ length: 5 }, () => operations.start(o)));
  const names = new Set(all.map((operation) => operation.name));
  expect(names.size).toBe(1);
  const worker = await operations.run(kind, async () => packed('once'));
  await operations.wait([...names][0]!, soon);
  expect(outcome(await operations.start(o))).toBe('response once');
  await expect(operations.start({ ...o, request: packed('another') })).rejects.toMatchObject({
    code: 'invalid_argument',
    reason: 'REQUEST_ID_REUSED',
  });
  expect((await operations.start({ ...o, project: 'q' })).name).not.toBe([...names][0]);
  await worker.stop();
});

test('operations are listed by project and by whether they are done, page by page', async () => {
  const kind = newKind();
  const project = `listed-${kinds}`;
  const names: string[] = [];
  for (let i = 0; i < 5; i += 1)
    names.push((await operations.start({ kind, project, request: packed(String(i)) })).name);
  await operations.cancel(names[0]!);
  const parent = `projects/${project}`;
  const first = await operations.list({ name: parent, pageSize: 3 });
  const second = await operations.list({ name: parent, pageSize: 3, pageToken: first.nextPageToken });
  expect([...first.operations, ...second.operations].map(({ name }) => name).sort()).toEqual([...names].sort());
  expect(second.nextPageToken).toBe('');
  expect((await operations.list({ name: parent, filter: 'done = true' })).operations.map(({ name }) => name)).toEqual([
    names[0],
  ]);
  expect((await operations.list({ name: parent, filter: 'done=false' })).operations).toHaveLength(4);
  expect((await operations.list({ name: 'operations', pageSize: 1000 })).operations.length).toBeGreaterThanOrEqual(5);
  await expect(operations.list({ name: parent, filter: 'colour = red' })).rejects.toMatchObject({
    fields: [{ field: 'filter' }],
  });
  await expect(operations.list({ name: 'models/x' })).rejects.toMatchObject({ fields: [{ field: 'name' }] });
  await expect(
    operations.list({ name: parent, filter: 'done=true', pageToken: first.nextPageToken }),
  ).rejects.toMatchObject({ reason: 'PAGE_TOKEN_MISMATCH' });
});

test('a done operation can be deleted, a running one and an unknown one cannot', async () => {
  const { name } = await operations.start({ kind: newKind(), project: 'p', request: packed('x') });
  await expect(operations.delete(name)).rejects.toMatchObject({
    code: 'failed_precondition',
    reason: 'OPERATION_RUNNING',
  });
  await operations.cancel(name);
  await operations.delete(name);
  for (const act of [operations.get, operations.delete, operations.cancel, operations.wait]) {
    await expect(act(name)).rejects.toMatchObject({ code: 'not_found' });
    await expect(act('nonsense/../x')).rejects.toMatchObject({ code: 'invalid_argument' });
  }
});

test('an operation goes on when the broker is killed and restarted under it', async () => {
  const kind = newKind();
  const begun = Promise.withResolvers<void>();
  const back = Promise.withResolvers<void>();
  let runs = 0;
  const worker = await operations.run(kind, async (run) => {
    runs += 1;
    begun.resolve();
    await back.promise;
    await run.update(packed('almost'));
    return packed('survived');
  });
  const { name } = await operations.start({ kind, project: 'p', request: packed('x') });
  await begun.promise;
  await nats.kill();
  await sleep(500);
  await nats.restart();
  back.resolve();
  expect(outcome(await operations.wait(name, { seconds: 30, nanos: 0 }))).toBe('response survived');
  expect(runs).toBe(1);
  await worker.stop();
});
