import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import { type NatsServer, repositoryRoot, spawnProcess, startNats } from '@medmesh/testkit';
import { connect, type NatsConnection } from '@nats-io/transport-node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Codec, type IdempotentOptions, idempotent, openRecords, type Records } from './index.ts';

const text: Codec<string> = { encode: (value) => Buffer.from(value), decode: (bytes) => Buffer.from(bytes).toString() };

let nats: NatsServer;
let nc: NatsConnection;
let records: Records;
beforeAll(async () => {
  nats = await startNats();
  nc = await connect({ servers: nats.url });
  records = await openRecords(nc);
});
afterAll(async () => {
  await nc.close();
  await nats.stop();
});

const request = (o: Partial<IdempotentOptions<string>> = {}): IdempotentOptions<string> => ({
  method: 'test.v1.Service/Create',
  requestId: randomUUID(),
  body: Buffer.from('body'),
  resCodec: text,
  ...o,
});

/** A request whose function answers 'one' when it is told to. */
function gated(o: IdempotentOptions<string>) {
  const begun = Promise.withResolvers<void>();
  const gate = Promise.withResolvers<void>();
  const first = idempotent(records, o, async () => {
    begun.resolve();
    await gate.promise;
    return 'one';
  });
  return { first, begun: begun.promise, finish: gate.resolve };
}

test('a repeat gets the first answer and the function does not run again', async () => {
  const o = request();
  let runs = 0;
  const create = async (): Promise<string> => {
    runs += 1;
    return `resource ${runs}`;
  };
  expect(await idempotent(records, o, create)).toBe('resource 1');
  expect(await idempotent(records, o, create)).toBe('resource 1');
  expect(await idempotent(records, { ...o, requestId: o.requestId.toUpperCase() }, create)).toBe('resource 1');
  expect(runs).toBe(1);
});

test('concurrent duplicates run the function once and all get its answer', async () => {
  const o = request();
  let runs = 0;
  const answers = await Promise.all(
    Array.from({ length: 10 }, () =>
      idempotent(records, o, async () => {
        runs += 1;
        // Time for the others to find the claim and to wait.
        await sleep(200);
        return `resource ${runs}`;
      }),
    ),
  );
  expect(runs).toBe(1);
  expect(new Set(answers)).toEqual(new Set(['resource 1']));
});

test('the same id with another body is refused, also while the first still runs', async () => {
  const o = request();
  const other = { ...o, body: Buffer.from('another body') };
  const { first, begun, finish } = gated(o);
  await begun;
  await expect(idempotent(records, other, async () => 'two')).rejects.toMatchObject({
    code: 'invalid_argument',
    reason: 'REQUEST_ID_REUSED',
    fields: [{ field: 'request_id' }],
  });
  finish();
  expect(await first).toBe('one');
  await expect(idempotent(records, other, async () => 'two')).rejects.toMatchObject({ reason: 'REQUEST_ID_REUSED' });
});

test('the same id of another caller or another method is another request', async () => {
  const o = request();
  expect(await idempotent(records, o, async () => 'one')).toBe('one');
  expect(await idempotent(records, { ...o, principal: 'somebody else' }, async () => 'two')).toBe('two');
  expect(await idempotent(records, { ...o, method: 'test.v1.Service/Delete' }, async () => 'three')).toBe('three');
});

test('a request without an id just runs, and a malformed id is refused', async () => {
  let runs = 0;
  const o = request({ requestId: '' });
  await idempotent(records, o, async () => String(++runs));
  await idempotent(records, o, async () => String(++runs));
  expect(runs).toBe(2);
  await expect(idempotent(records, request({ requestId: 'not-a-uuid' }), async () => 'never')).rejects.toMatchObject({
    code: 'invalid_argument',
    fields: [{ field: 'request_id' }],
  });
});

test('a request that failed may be repeated, and its failure is what the caller saw', async () => {
  const o = request();
  const failure = new Failure('resource_exhausted', 'no room');
  await expect(idempotent(records, o, () => Promise.reject(failure))).rejects.toBe(failure);
  expect(await idempotent(records, o, async () => 'now it fits')).toBe('now it fits');
});

test('a repeat that waited long enough is told that the first still runs', async () => {
  const o = request();
  const { first, begun, finish } = gated(o);
  await begun;
  await expect(idempotent(records, { ...o, waitMs: 150 }, async () => 'two')).rejects.toMatchObject({
    code: 'aborted',
    reason: 'REQUEST_IN_PROGRESS',
  });
  finish();
  expect(await first).toBe('one');
});

test('a function that takes longer than a claim lives keeps its claim', async () => {
  const o = request({ claimMs: 1_500 });
  let runs = 0;
  const slow = async (): Promise<string> => {
    runs += 1;
    await sleep(4_000);
    return `resource ${runs}`;
  };
  const answers = await Promise.all([idempotent(records, o, slow), idempotent(records, o, slow)]);
  expect(answers).toEqual(['resource 1', 'resource 1']);
});

test('after a crash between claim and answer the claim lapses and a repeat does the work', async () => {
  const o = request({ claimMs: 700 });
  const crashing = await spawnProcess({
    command: process.execPath,
    args: [`${repositoryRoot}/libs/records/test/claim-and-hang.ts`, nats.url, o.requestId, String(o.claimMs)],
    ready: /claimed/,
  });
  await crashing.kill();
  let takenOver: boolean | undefined;
  const answer = await idempotent(records, o, async (claim) => {
    takenOver = claim.takenOver;
    return 'done by the second';
  });
  expect(answer).toBe('done by the second');
  expect(takenOver).toBe(true);
  expect(await idempotent(records, o, async () => 'never')).toBe('done by the second');
});
