import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import { createLogger } from '@medmesh/log';
import {
  type NatsServer,
  type RunningProcess,
  repositoryRoot,
  spawnProcess,
  startNats,
  waitFor,
} from '@medmesh/testkit';
import { jetstreamManager } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/transport-node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  type ConsumeWorkOptions,
  connectNats,
  consumeWork,
  createPublisher,
  deadHeaders,
  ensureStreams,
  Requeue,
  readEvents,
  subjects,
} from './index.ts';

const log = createLogger({ service: 'test', level: 'silent' });
let nats: NatsServer;
let nc: NatsConnection;
beforeAll(async () => {
  nats = await startNats();
  nc = await connectNats({ url: nats.url, name: 'test', log });
  await ensureStreams(nc);
});
afterAll(async () => {
  await nc.close();
  await nats.stop();
});

let queues = 0;
/** A subject and durable of its own for each test. */
function newQueue() {
  queues += 1;
  const kind = `kind-${queues}`;
  const subject = subjects.operation(kind);
  const publisher = createPublisher(nc);
  let sent = 0;
  return {
    subject,
    durable: kind,
    send: (text: string) =>
      publisher.publish(subject, Buffer.from(text), { messageId: `${kind}-${++sent}`, type: 'test.v1.Work' }),
    consume: (o: Partial<ConsumeWorkOptions> & Pick<ConsumeWorkOptions, 'handler'>) =>
      consumeWork({
        nc,
        subject,
        durable: kind,
        concurrency: 1,
        ackWaitMs: 1_000,
        maxDeliver: 3,
        backoffMs: 20,
        log,
        ...o,
      }),
    /** Messages of this queue that are not done. */
    async left(): Promise<number> {
      const manager = await jetstreamManager(nc);
      const info = await manager.streams.info('MM_WORK', { subjects_filter: subject });
      return info.state.subjects?.[subject] ?? 0;
    },
    dead: () =>
      Array.fromAsync(
        readEvents({
          nc,
          subject: `${subject.replace('mm.work', 'mm.dead')}.*`,
          afterSequence: 0,
          follow: false,
          signal: new AbortController().signal,
        }),
      ),
  };
}

const textOf = (message: { data: Uint8Array }): string => Buffer.from(message.data).toString();

test('work is done once and leaves the queue', async () => {
  const queue = newQueue();
  const done: string[] = [];
  const consumer = await queue.consume({
    async handler(message) {
      done.push(textOf(message));
    },
  });
  for (const text of ['a', 'b', 'c']) await queue.send(text);
  await waitFor(async () => (await queue.left()) === 0, { what: 'an empty queue' });
  expect(done).toEqual(['a', 'b', 'c']);
  await consumer.stop();
});

test('a consumer works on as many messages at once as it has places, and fetches none ahead', async () => {
  const queue = newQueue();
  let begun = 0;
  const proceed = Promise.withResolvers<void>();
  const handler: ConsumeWorkOptions['handler'] = async () => {
    begun += 1;
    await proceed.promise;
  };
  for (let i = 0; i < 8; i += 1) await queue.send(String(i));
  const consumers = [
    await queue.consume({ handler, concurrency: 2, ackWaitMs: 30_000 }),
    await queue.consume({ handler, concurrency: 2, ackWaitMs: 30_000 }),
  ];
  await waitFor(() => begun === 4, { what: 'four handlers at once' });
  await sleep(300);
  const info = await (await jetstreamManager(nc)).consumers.info('MM_WORK', queue.durable);
  expect(begun).toBe(4);
  expect(info.num_ack_pending).toBe(4);
  proceed.resolve();
  await waitFor(async () => (await queue.left()) === 0, { what: 'an empty queue' });
  expect(begun).toBe(8);
  await Promise.all(consumers.map((consumer) => consumer.stop()));
});

test('a handler may take several times the ack wait: heartbeats keep the work from being given to another', async () => {
  const queue = newQueue();
  const deliveries: number[] = [];
  const handler: ConsumeWorkOptions['handler'] = async (message) => {
    deliveries.push(message.deliveryCount);
    await sleep(5_000);
  };
  const consumers = [
    await queue.consume({ handler, ackWaitMs: 1_500 }),
    await queue.consume({ handler, ackWaitMs: 1_500 }),
  ];
  await queue.send('long');
  await waitFor(async () => deliveries.length > 0 && (await queue.left()) === 0, { what: 'the end of the work' });
  expect(deliveries).toEqual([1]);
  await Promise.all(consumers.map((consumer) => consumer.stop()));
});

test('a failure that may pass is tried again after a pause, and is dead after the last attempt', async () => {
  const queue = newQueue();
  const attempts: number[] = [];
  const dead: string[] = [];
  const consumer = await queue.consume({
    backoffMs: [50, 100],
    async handler() {
      attempts.push(performance.now());
      throw new Failure('unavailable', 'not now', { reason: 'STORE_UNAVAILABLE' });
    },
    async onDead(message, failure) {
      dead.push(`${textOf(message)} ${failure.reason}`);
    },
  });
  await queue.send('flaky');
  await waitFor(async () => (await queue.left()) === 0, { what: 'the end of the work' });
  expect(attempts).toHaveLength(3);
  expect(attempts[1]! - attempts[0]!).toBeGreaterThan(45);
  expect(attempts[2]! - attempts[1]!).toBeGreaterThan(95);
  expect(dead).toEqual(['flaky STORE_UNAVAILABLE']);
  const [letter] = await queue.dead();
  expect(textOf(letter!)).toBe('flaky');
  expect(Object.fromEntries(letter!.headers)).toMatchObject({
    [deadHeaders.code]: 'unavailable',
    [deadHeaders.reason]: 'STORE_UNAVAILABLE',
    [deadHeaders.deliveries]: '3',
    [deadHeaders.subject]: queue.subject,
    'ce-type': 'test.v1.Work',
  });
  await consumer.stop();
});

test('a failure that cannot pass, and an error nobody foresaw, are dead at once', async () => {
  const queue = newQueue();
  let attempts = 0;
  const consumer = await queue.consume({
    async handler(message) {
      attempts += 1;
      if (textOf(message) === 'bad') throw new Failure('invalid_argument', 'not a work item');
      throw new TypeError('a bug');
    },
  });
  await queue.send('bad');
  await queue.send('unforeseen');
  await waitFor(async () => (await queue.left()) === 0, { what: 'the end of the work' });
  expect(attempts).toBe(2);
  expect((await queue.dead()).map((letter) => `${textOf(letter)} ${letter.headers.get(deadHeaders.code)}`)).toEqual([
    'bad invalid_argument',
    'unforeseen internal',
  ]);
  await consumer.stop();
});

test('a message stays in the queue until its death is recorded', async () => {
  const queue = newQueue();
  let told = 0;
  const consumer = await queue.consume({
    async handler() {
      throw new Failure('invalid_argument', 'no');
    },
    async onDead() {
      told += 1;
      if (told === 1) throw new Failure('unavailable', 'the record cannot be written');
    },
  });
  await queue.send('bad');
  await waitFor(async () => (await queue.left()) === 0, { what: 'the end of the work', timeoutMs: 15_000 });
  expect(told).toBe(2);
  expect(await queue.dead()).toHaveLength(1);
  await consumer.stop();
});

test('work that is handed back comes again after its delay, as often as need be, and does not count as failed', async () => {
  const queue = newQueue();
  const times: number[] = [];
  const consumer = await queue.consume({
    maxDeliver: 2,
    async handler() {
      times.push(performance.now());
      if (times.length < 5) throw new Requeue(80);
      if (times.length === 5) throw new Failure('unavailable', 'one real failure');
    },
  });
  await queue.send('moved about');
  await waitFor(async () => (await queue.left()) === 0, { what: 'the end of the work' });
  expect(times).toHaveLength(6);
  expect(times[1]! - times[0]!).toBeGreaterThan(70);
  expect(await queue.dead()).toEqual([]);
  await consumer.stop();
});

const startWorker = (
  queue: { subject: string; durable: string },
  o: { ackWaitMs: number; maxDeliver: number; workMs: number },
): Promise<RunningProcess> =>
  spawnProcess({
    command: process.execPath,
    args: [
      `${repositoryRoot}/libs/events/test/worker.ts`,
      nats.url,
      queue.subject,
      queue.durable,
      String(o.ackWaitMs),
      String(o.maxDeliver),
      String(o.workMs),
    ],
    ready: /taking work/,
  });

test('work of a process that was killed is given to another', async () => {
  const queue = newQueue();
  const doomed = await startWorker(queue, { ackWaitMs: 1_000, maxDeliver: 5, workMs: 60_000 });
  await queue.send('job');
  await doomed.waitForLine(/begin job delivery 1/);
  await doomed.kill();
  const heir = await startWorker(queue, { ackWaitMs: 1_000, maxDeliver: 5, workMs: 10 });
  await heir.waitForLine(/begin job delivery 2/);
  await heir.waitForLine(/end job/);
  await waitFor(async () => (await queue.left()) === 0, { what: 'an empty queue' });
  expect((await heir.stop()).code).toBe(0);
});

test('a message that kills every process that takes it is dead after the last attempt, and the next one is done', async () => {
  const queue = newQueue();
  const workers: RunningProcess[] = [];
  await queue.send('poison');
  for (let i = 1; i <= 2; i += 1) {
    const worker = await startWorker(queue, { ackWaitMs: 500, maxDeliver: 2, workMs: 10 });
    workers.push(worker);
    expect((await worker.exited).signal).toBe('SIGKILL');
  }
  await queue.send('wholesome');
  const survivor = await startWorker(queue, { ackWaitMs: 500, maxDeliver: 2, workMs: 10 });
  await survivor.waitForLine(/end wholesome/);
  await waitFor(async () => (await queue.left()) === 0, { what: 'an empty queue' });
  expect(survivor.stdout()).not.toContain('begin poison');
  const [letter] = await queue.dead();
  expect(letter!.headers.get(deadHeaders.reason)).toBe('WORKERS_DIED');
  await survivor.stop();
});

test('a broker that is killed and restarted in the middle of work loses nothing, and nothing is done twice', async () => {
  const queue = newQueue();
  const done: string[] = [];
  const consumer = await queue.consume({
    concurrency: 2,
    ackWaitMs: 800,
    async handler(message) {
      await sleep(400);
      done.push(textOf(message));
    },
  });
  const sent = Array.from({ length: 10 }, (_, i) => String(i));
  for (const text of sent) await queue.send(text);
  await waitFor(() => done.length >= 2, { what: 'some work' });
  await nats.kill();
  await sleep(1_200);
  await nats.restart();
  await waitFor(async () => (await queue.left()) === 0, { what: 'an empty queue', timeoutMs: 30_000 });
  expect([...done].sort()).toEqual(sent);
  await consumer.stop();
});

test('stopping lets the handler finish when it wants to, and takes nothing new', async () => {
  const queue = newQueue();
  const begun: string[] = [];
  const done: string[] = [];
  const consumer = await queue.consume({
    async handler(message) {
      begun.push(textOf(message));
      await sleep(500);
      done.push(textOf(message));
    },
  });
  await queue.send('first');
  await queue.send('second');
  await waitFor(() => begun.length === 1, { what: 'the work to begin' });
  await consumer.stop();
  expect(done).toEqual(['first']);
  expect(await queue.left()).toBe(1);
});

test('stopping hands back what its handler leaves, at once and without counting it', async () => {
  const queue = newQueue();
  const leave: ConsumeWorkOptions['handler'] = (_, signal) =>
    new Promise((_resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason as Error));
    });
  const stop = new AbortController();
  for (let i = 0; i < 2; i += 1) {
    const began = new AbortController();
    const consumer = await queue.consume({
      ackWaitMs: 30_000,
      maxDeliver: 1,
      signal: stop.signal,
      handler: (message, signal) => {
        began.abort();
        return leave(message, signal);
      },
    });
    if (i === 0) await queue.send('long job');
    await waitFor(() => began.signal.aborted, { what: 'the work to begin' });
    await consumer.stop();
  }
  let deliveries = 0;
  const last = await queue.consume({
    ackWaitMs: 30_000,
    maxDeliver: 1,
    async handler(message) {
      deliveries = message.deliveryCount;
    },
  });
  await waitFor(async () => (await queue.left()) === 0, { what: 'the end of the work' });
  expect(deliveries).toBe(3);
  expect(await queue.dead()).toEqual([]);
  await last.stop();
});
