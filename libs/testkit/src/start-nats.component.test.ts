import { jetstream, jetstreamManager } from '@nats-io/jetstream';
import { connect } from '@nats-io/transport-node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type NatsServer, startNats } from './start-nats.ts';

let nats: NatsServer;
beforeAll(async () => {
  nats = await startNats({ syncAlways: true });
});
afterAll(async () => nats.stop());

test('two servers run side by side and know nothing of each other', async () => {
  const other = await startNats();
  expect(other.url).not.toBe(nats.url);
  const connection = await connect({ servers: other.url });
  expect(connection.info?.jetstream).toBe(true);
  await connection.close();
  await other.stop();
});

test('what was acknowledged is there after a kill and a restart on the same port', async () => {
  const before = await connect({ servers: nats.url });
  await (await jetstreamManager(before)).streams.add({ name: 'S', subjects: ['s.*'] });
  for (let i = 0; i < 20; i += 1) await jetstream(before).publish('s.a', `message ${i}`);
  await nats.kill();
  await before.close();

  await nats.restart();
  const after = await connect({ servers: nats.url });
  expect((await (await jetstreamManager(after)).streams.info('S')).state.messages).toBe(20);
  await after.close();
});
