import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { connect, createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import { expect, test } from 'vitest';
import { createClient, openChannel } from '../src/index.ts';
import { EchoServiceDefinition, type Note, rejection, startTestServer } from './echo-service.ts';

const lines = Array.from({ length: 200 }, (_, i) => `${i} ${'x'.repeat(2000)}`);

/** More than a connection's window holds, so that the end waits for the reader; then a failure with details if that is asked for. */
const generate = async function* ({ text }: Note): AsyncGenerator<Note> {
  for (const line of lines) yield { text: line };
  if (text === 'fail') throw new Failure('resource_exhausted', 'read faster', { reason: 'SLOW_READER' });
};

const often = { everyMs: 150, timeoutMs: 3_000 };

/** Reads the first message, then nothing for a while, then all the rest. */
async function readSlowly(stream: AsyncIterable<Note>, pauseMs: number): Promise<string[]> {
  const texts: string[] = [];
  for await (const { text } of stream) {
    if (texts.push(text) === 1) await sleep(pauseMs);
  }
  return texts;
}

test.each([
  { looks: 'client', keepalive: { client: often, server: undefined } },
  { looks: 'server', keepalive: { client: undefined, server: 150 } },
])(
  'a slow reader gets every message and the status after its connection was asked to move on, when the $looks looks for dead peers',
  async ({ keepalive }) => {
    const server = await startTestServer({ generate }, { maxConnectionAgeMs: 100, keepaliveMs: keepalive.server });
    const channel = openChannel(server.address, { keepalive: keepalive.client });
    const client = createClient(EchoServiceDefinition, channel);
    const whole = readSlowly(client.generate({ text: '' }), 800);
    const failed = rejection(readSlowly(client.generate({ text: 'fail' }), 800));
    expect(await whole).toEqual(lines);
    expect(await failed).toMatchObject({ code: 'resource_exhausted', reason: 'SLOW_READER' });
    channel.close();
    await server.stop();
  },
);

test('a slow reader gets every message and the status from a server that drains', async () => {
  const server = await startTestServer({ generate }, { keepaliveMs: 150 });
  const channel = openChannel(server.address, { keepalive: often });
  const client = createClient(EchoServiceDefinition, channel);
  const whole = readSlowly(client.generate({ text: '' }), 800);
  const failed = rejection(readSlowly(client.generate({ text: 'fail' }), 800));
  await sleep(100);
  const draining = server.drain(10_000);
  expect(await whole).toEqual(lines);
  expect(await failed).toMatchObject({ code: 'resource_exhausted', reason: 'SLOW_READER' });
  await draining;
  channel.close();
});

test('a peer that falls silent while its connection is closing is found by the next ping', async () => {
  const server = await startTestServer({
    async *generate(_, { signal }) {
      yield { text: 'first' };
      await once(signal, 'abort');
    },
  });
  let silent = false;
  const between = createServer((near) => {
    const far = connect(server.port, '127.0.0.1');
    near.on('data', (bytes) => !silent && far.write(bytes)).on('error', () => far.destroy());
    far.on('data', (bytes) => !silent && near.write(bytes)).on('error', () => near.destroy());
    near.on('close', () => far.destroy());
  }).listen(0, '127.0.0.1');
  await once(between, 'listening');
  const channel = openChannel(`127.0.0.1:${(between.address() as AddressInfo).port}`, {
    keepalive: { everyMs: 150, timeoutMs: 300 },
  });
  const stream = createClient(EchoServiceDefinition, channel).generate({ text: '' })[Symbol.asyncIterator]();
  await stream.next();
  const draining = server.drain(10_000);
  await sleep(100);
  silent = true;
  expect(await rejection(stream.next())).toMatchObject({ code: 'unavailable' });
  channel.close();
  between.close();
  await draining;
});
