import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ensureStreams } from '@medmesh/events';
import { findProgram, freePorts, type RunningProcess, spawnProcess, tempDir, waitFor } from '@medmesh/testkit';
import { jetstreamManager } from '@nats-io/jetstream';
import { connect } from '@nats-io/transport-node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { keyOf, openRecords } from './index.ts';

const size = 3;
const servers: RunningProcess[] = [];
let addresses: string[];
const text = {
  encode: (value: string) => Buffer.from(value),
  decode: (bytes: Uint8Array) => Buffer.from(bytes).toString(),
};

beforeAll(async () => {
  const program = findProgram('nats-server');
  if (!program) throw new Error('nats-server is neither in .cache/bin nor on the PATH: run sh scripts/setup.sh');
  const ports = await freePorts(2 * size);
  const clients = ports.slice(0, size);
  const routes = ports.slice(size).map((port) => `nats://127.0.0.1:${port}`);
  for (const [i, port] of clients.entries()) {
    const folder = tempDir(`nats-${i}`);
    const config = join(folder, 'nats.conf');
    writeFileSync(
      config,
      [
        `server_name: nats-${i}`,
        `listen: "127.0.0.1:${port}"`,
        `jetstream { store_dir: ${JSON.stringify(join(folder, 'store'))}, max_file_store: 1GB, max_memory_store: 64MB }`,
        `cluster { name: medmesh, listen: "127.0.0.1:${ports[size + i]}", routes: ${JSON.stringify(routes)} }`,
        '',
      ].join('\n'),
    );
    servers.push(await spawnProcess({ command: program, args: ['-c', config] }));
  }
  addresses = clients.map((port) => `127.0.0.1:${port}`);
});
afterAll(() => Promise.all(servers.map((server) => server.kill())));

test('in a cluster, streams and records get the copies asked for, also those that were there before, and outlive a server', async () => {
  // A cluster that has just come up has no leader yet: asking again is what every service does too.
  const nc = await waitFor(
    async () => {
      const connection = await connect({ servers: addresses, maxReconnectAttempts: -1 });
      await ensureStreams(connection).catch(async (error: unknown) => {
        await connection.close();
        throw error;
      });
      return connection;
    },
    { what: 'the cluster', timeoutMs: 60_000 },
  );
  await (await openRecords(nc)).bucket('models', text);
  await ensureStreams(nc, { replicas: size });
  const models = await (await openRecords(nc, { replicas: size })).bucket('models', text);
  const entry = await models.create(keyOf('projects/p/models/m'), 'kept');

  const manager = await jetstreamManager(nc);
  for (const stream of ['MM_WORK', 'MM_EVENTS', 'KV_models'])
    expect((await manager.streams.info(stream)).config.num_replicas, stream).toBe(size);

  const caughtUp = async () => {
    const { cluster } = await manager.streams.info('KV_models');
    return cluster?.replicas?.length === size - 1 && cluster.replicas.every(({ current }) => current);
  };
  await waitFor(caughtUp, { what: 'the copies of the records', timeoutMs: 60_000 });
  const { cluster } = await manager.streams.info('KV_models');
  await servers[Number(cluster?.leader?.at(-1))]?.stop();
  expect(await models.get(entry.key)).toEqual(entry);
  await nc.close();
});
