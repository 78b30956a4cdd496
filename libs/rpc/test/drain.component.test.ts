import { once } from 'node:events';
import { connect } from 'node:http2';
import { waitFor } from '@medmesh/testkit';
import { expect, test } from 'vitest';
import { createClient, createHealth } from '../src/index.ts';
import { all, EchoServiceDefinition, rejection, startTestServer } from './echo-service.ts';

test('a drain lets unary calls and finite streams finish, and ends watches at once with unavailable', async () => {
  let open = 0;
  let watching = false;
  const finish = Promise.withResolvers<void>();
  const server = await startTestServer({
    say: async ({ text }) => {
      open += 1;
      await finish.promise;
      return { text };
    },
    generate: async function* () {
      for (let i = 0; i < 6; i++) {
        if (i === 3) await finish.promise;
        yield { text: String(i) };
      }
    },
    watchNotes: async function* (_, { signal }) {
      yield { text: 'first' };
      watching = true;
      await once(signal, 'abort');
    },
  });
  const client = createClient(EchoServiceDefinition, server.address);
  const unary = client.say({ text: 'kept' });
  const received: string[] = [];
  const stream = (async () => {
    for await (const { text } of client.generate({ text: '' })) received.push(text);
  })();
  const watch = rejection(all(client.watchNotes({ text: '' })));
  await waitFor(() => open === 1 && watching && received.length === 3);

  let drained = false;
  const draining = server.drain(60_000).then(() => {
    drained = true;
  });
  expect(await watch).toMatchObject({ code: 'unavailable', reason: 'SHUTTING_DOWN' });
  expect(drained).toBe(false);
  finish.resolve();
  await draining;
  expect(await unary).toEqual({ text: 'kept' });
  await stream;
  expect(received).toEqual(['0', '1', '2', '3', '4', '5']);
});

test('a drain ends within its grace even calls whose handlers ignore their signal', async () => {
  let open = 0;
  const never = new Promise<never>(() => undefined);
  const server = await startTestServer({
    say: () => {
      open++;
      return never;
    },
    generate: async function* () {
      yield { text: 'first' };
      open++;
      await never;
    },
  });
  const client = createClient(EchoServiceDefinition, server.address);
  const calls = [rejection(client.say({ text: '' })), rejection(all(client.generate({ text: '' })))];
  await waitFor(() => open === 2);
  await server.drain(500);
  for (const call of calls) expect(await call).toMatchObject({ code: 'unavailable', reason: 'SHUTTING_DOWN' });
});

test('a drain closes at its grace a stream whose reader does not read', async () => {
  const server = await startTestServer({
    generate: async function* () {
      for (;;) yield { text: 'x'.repeat(64 * 1024) };
    },
  });
  const stream = createClient(EchoServiceDefinition, server.address).generate({ text: '' })[Symbol.asyncIterator]();
  await stream.next();
  await expect(server.drain(400)).resolves.toBeUndefined();
});

test('a drained server takes no new calls', async () => {
  const server = await startTestServer({ say: async ({ text }) => ({ text }) });
  const client = createClient(EchoServiceDefinition, server.address);
  await client.say({ text: 'a' });
  await server.drain(500);
  expect(await rejection(client.say({ text: 'b' }, { deadlineMs: 2000 }))).toMatchObject({ code: 'unavailable' });
});

test('a connection is asked to move on at its greatest age, not all connections at the same time', async () => {
  const server = await startTestServer({}, { maxConnectionAgeMs: 1000 });
  const ages = await Promise.all(
    Array.from({ length: 16 }, async () => {
      const session = connect(`http://${server.address}`);
      await once(session, 'connect');
      const started = performance.now();
      await once(session, 'goaway');
      session.destroy();
      return performance.now() - started;
    }),
  );
  expect(Math.min(...ages)).toBeGreaterThan(850);
  // Sixteen draws from 900 to 1100 ms lie within 40 ms of each other about once in 10^9 runs.
  expect(Math.max(...ages) - Math.min(...ages)).toBeGreaterThan(40);
  await server.stop();
});

test('a port that is taken is a failed_precondition that names it', async () => {
  const server = await startTestServer({});
  expect(await rejection(startTestServer({}, { port: server.port, health: createHealth() }))).toMatchObject({
    code: 'failed_precondition',
    reason: 'LISTEN_FAILED',
    message: expect.stringContaining(`127.0.0.1:${server.port}`),
  });
  await server.stop();
});
