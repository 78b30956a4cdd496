import { createServer } from 'node:net';
import { Writable } from 'node:stream';
import type { Failure } from '@medmesh/errors';
import { createLogger } from '@medmesh/log';
import { freePort, type NatsServer, startNats, waitFor } from '@medmesh/testkit';
import { jetstreamManager } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/transport-node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  connectNats,
  createPublisher,
  ensureStreams,
  type Publisher,
  readEvents,
  type StoredEvent,
  subjects,
} from './index.ts';

function captureLog() {
  const lines: string[] = [];
  const destination = new Writable({
    write(chunk: Buffer, _encoding, done) {
      lines.push(chunk.toString());
      done();
    },
  });
  return { lines, log: createLogger({ service: 'test', level: 'info', destination }) };
}

const { log } = captureLog();
let nats: NatsServer;
let nc: NatsConnection;
let publisher: Publisher;
beforeAll(async () => {
  nats = await startNats();
  nc = await connectNats({ url: nats.url, name: 'test', log });
  await ensureStreams(nc);
  publisher = createPublisher(nc, { name: 'test' });
});
afterAll(async () => {
  await nc.close();
  await nats.stop();
});

const bytes = (text: string): Uint8Array => Buffer.from(text);
let ids = 0;
const publish = (subject: string, text: string, o: { messageId?: string; expectLastSubjectSequence?: number } = {}) =>
  publisher.publish(subject, bytes(text), { messageId: `id-${++ids}`, type: 'test.v1.Note', ...o });
const texts = (events: StoredEvent[]): string[] => events.map((event) => Buffer.from(event.data).toString());
const past = (subject: string, afterSequence = 0): Promise<StoredEvent[]> =>
  Array.fromAsync(readEvents({ nc, subject, afterSequence, follow: false, signal: new AbortController().signal }));

test('a server that is not up yet is waited for, with a line that says where and what to check', async () => {
  const port = await freePort();
  const { lines, log: captured } = captureLog();
  const connecting = connectNats({ url: `nats://someone:s3cret@127.0.0.1:${port}`, name: 'early', log: captured });
  await waitFor(() => lines.length >= 2, { what: 'two attempts' });
  expect(lines[0]).toContain(`no nats-server answers at 127.0.0.1:${port}; is it running? Trying again in 0.2 s`);
  expect(lines[1]).toContain('"attempt":2');
  const late = await startNats({ port });
  const connection = await connecting;
  expect(lines.at(-1)).toContain('connected to nats-server');
  expect(lines.join('')).not.toContain('s3cret');
  await connection.close();
  await late.stop();
});

test('waiting for a server ends with the signal', async () => {
  const port = await freePort();
  const connecting = connectNats({ url: `127.0.0.1:${port}`, name: 'never', log, signal: AbortSignal.timeout(300) });
  await expect(connecting).rejects.toMatchObject({ name: 'TimeoutError' });
});

test('a URL that is none is refused without being repeated', async () => {
  for (const url of ['http://127.0.0.1:4222', 'nats://:::', 'nats://']) {
    const failure = await connectNats({ url, name: 'x', log }).catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: 'invalid_argument' });
  }
});

test.each([
  ['2.9.10', true, 'BROKER_TOO_OLD', 'install 2.10 or newer'],
  ['2.10.27', false, 'BROKER_WITHOUT_JETSTREAM', 'start it with --jetstream'],
])('a server %s with JetStream %s is refused with what to do', async (version, hasJetStream, reason, advice) => {
  const server = createServer((socket) => {
    const info = { server_id: 'x', version, jetstream: hasJetStream, headers: true, proto: 1, max_payload: 1_048_576 };
    socket.write(`INFO ${JSON.stringify(info)}\r\n`);
    socket.on('data', (data) => {
      if (data.includes('PING')) socket.write('PONG\r\n');
    });
    socket.on('error', () => undefined);
  });
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  const { port } = server.address() as { port: number };
  await expect(connectNats({ url: `127.0.0.1:${port}`, name: 'x', log })).rejects.toMatchObject({
    code: 'failed_precondition',
    reason,
    message: expect.stringContaining(advice),
  });
  server.close();
});

test('streams are made once, on disk, and brought back to their definition when it differs', async () => {
  await Promise.all([ensureStreams(nc), ensureStreams(nc)]);
  const manager = await jetstreamManager(nc);
  const { config } = await manager.streams.info('MM_EVENTS');
  expect(config.storage).toBe('file');
  await manager.streams.update('MM_EVENTS', { ...config, max_age: 1_000_000_000, duplicate_window: 1_000_000_000 });
  await ensureStreams(nc);
  expect((await manager.streams.info('MM_EVENTS')).config.max_age).toBe(config.max_age);
});

test('a stream that cannot become ours is reported by name', async () => {
  const other = await startNats();
  const connection = await connectNats({ url: other.url, name: 'x', log });
  const manager = await jetstreamManager(connection);
  await manager.streams.add({ name: 'MM_WORK', subjects: ['mm.work.v1.>'] });
  await expect(ensureStreams(connection)).rejects.toMatchObject({
    code: 'failed_precondition',
    reason: 'STREAM_CONFLICT',
    metadata: { stream: 'MM_WORK' },
  });
  await connection.close();
  await other.stop();
});

test('an event carries its id, its type and the CloudEvents attributes', async () => {
  const subject = subjects.jobEvent('st.anna', 'job-1', 'metrics');
  expect(subject).toBe('mm.evt.v1.st=2Eanna.job.job-1.metrics');
  const { sequence } = await publish(subject, 'one', { messageId: 'event-1' });
  const [event] = await past(subject);
  expect(event).toMatchObject({ sequence, subject });
  expect(Object.fromEntries(event!.headers)).toMatchObject({
    'Nats-Msg-Id': 'event-1',
    'content-type': 'application/protobuf',
    'ce-specversion': '1.0',
    'ce-id': 'event-1',
    'ce-type': 'test.v1.Note',
    'ce-source': '/medmesh/test',
  });
});

test('a message with the same id is stored once', async () => {
  const subject = subjects.jobEvent('p', 'job-twice', 'note');
  const first = await publish(subject, 'one', { messageId: 'same' });
  const second = await publish(subject, 'one', { messageId: 'same' });
  expect(second).toEqual({ sequence: first.sequence, duplicate: true });
  expect(await past(subject)).toHaveLength(1);
});

test('of 20 concurrent terminal events of a job exactly one is stored, and a later one is refused too', async () => {
  const subject = subjects.terminal('p', 'job-1');
  const results = await Promise.allSettled(
    Array.from({ length: 20 }, (_, i) => publish(subject, `end ${i}`, { expectLastSubjectSequence: 0 })),
  );
  expect(results.filter((result) => result.status === 'fulfilled')).toHaveLength(1);
  const refused = results.filter((result) => result.status === 'rejected').map((result) => result.reason as Failure);
  expect(refused).toHaveLength(19);
  expect(new Set(refused.map((failure) => `${failure.code} ${failure.reason}`))).toEqual(
    new Set(['aborted SEQUENCE_MISMATCH']),
  );
  await expect(publish(subject, 'late', { expectLastSubjectSequence: 0 })).rejects.toMatchObject({ code: 'aborted' });
  expect(await past(subject)).toHaveLength(1);
  await publish(subjects.terminal('p', 'job-2'), 'another job', { expectLastSubjectSequence: 0 });
});

test('a terminal event that is sent again by the one who stored it is a duplicate, not a refusal', async () => {
  const subject = subjects.terminal('p', 'job-again');
  const first = await publish(subject, 'end', { messageId: 'mine', expectLastSubjectSequence: 0 });
  // Beyond the window in which the broker itself remembers ids.
  const manager = await jetstreamManager(nc);
  const { config } = await manager.streams.info('MM_EVENTS');
  await manager.streams.update('MM_EVENTS', { ...config, duplicate_window: 100_000_000 });
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(await publish(subject, 'end', { messageId: 'mine', expectLastSubjectSequence: 0 })).toEqual({
    sequence: first.sequence,
    duplicate: true,
  });
  await manager.streams.update('MM_EVENTS', config);
});

test('a subject that no stream keeps is a mistake of the code', async () => {
  await expect(Promise.resolve().then(() => publish('other.subject', 'x'))).rejects.toMatchObject({
    code: 'internal',
    reason: 'SUBJECT_UNKNOWN',
  });
});

test('reading begins after the cursor and ends with what is there', async () => {
  const subject = subjects.jobEvents('p', 'job-read');
  const sequences: number[] = [];
  for (const text of ['a', 'b', 'c'])
    sequences.push((await publish(subjects.jobEvent('p', 'job-read', text), text)).sequence);
  await publish(subjects.jobEvent('p', 'job-other', 'x'), 'x');
  expect(texts(await past(subject))).toEqual(['a', 'b', 'c']);
  expect(texts(await past(subject, sequences[0]))).toEqual(['b', 'c']);
  expect(await past(subject, sequences[2])).toEqual([]);
  expect(await past(subjects.jobEvents('p', 'job-none'))).toEqual([]);
});

test('more events than one request brings are read in order', async () => {
  const subject = subjects.jobEvent('p', 'job-many', 'metrics');
  await Promise.all(Array.from({ length: 1000 }, (_, i) => publish(subject, String(i))));
  const events = await past(subject);
  expect(events).toHaveLength(1000);
  expect(events.map((event) => event.sequence)).toEqual(events.map((event) => event.sequence).sort((a, b) => a - b));
});

test('a follower sees every event once and in order while the broker is killed and restarted, and so does one that begins at its cursor', async () => {
  const subject = subjects.jobEvents('p', 'job-follow');
  const stop = new AbortController();
  const seen: StoredEvent[] = [];
  const following = (async () => {
    for await (const event of readEvents({ nc, subject, afterSequence: 0, follow: true, signal: stop.signal }))
      seen.push(event);
  })();
  for (let i = 0; i < 5; i += 1) await publish(subjects.jobEvent('p', 'job-follow', 'n'), String(i));
  await waitFor(() => seen.length === 5, { what: 'the first events' });
  await nats.kill();
  const waiting = publish(subjects.jobEvent('p', 'job-follow', 'n'), '5');
  await nats.restart();
  await waiting;
  for (let i = 6; i < 10; i += 1) await publish(subjects.jobEvent('p', 'job-follow', 'n'), String(i));
  await waitFor(() => seen.length === 10, { what: 'the events after the restart', timeoutMs: 20_000 });
  expect(texts(seen)).toEqual(['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
  expect(texts(await past(subject, seen[6]!.sequence))).toEqual(['7', '8', '9']);
  stop.abort();
  await following;
});

test('reading with a signal that aborts ends quietly, at once', async () => {
  const read = (signal: AbortSignal) =>
    Array.fromAsync(
      readEvents({ nc, subject: subjects.jobEvents('p', 'job-quiet'), afterSequence: 0, follow: true, signal }),
    );
  expect(await read(AbortSignal.abort())).toEqual([]);
  expect(await read(AbortSignal.timeout(100))).toEqual([]);
});

test('a publish gives up with its signal while the broker is away', async () => {
  await nats.kill();
  try {
    const publishing = publisher.publish(subjects.jobEvent('p', 'job-x', 'n'), bytes('x'), {
      messageId: 'x',
      type: 't',
      signal: AbortSignal.timeout(400),
    });
    await expect(publishing).rejects.toMatchObject({ name: 'TimeoutError' });
  } finally {
    await nats.restart();
  }
});
