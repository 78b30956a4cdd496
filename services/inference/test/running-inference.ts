import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { artifactFiles, type Catalog, openCatalog } from '@medmesh/catalog';
import { connectNats } from '@medmesh/events';
import { createLogger } from '@medmesh/log';
import { collectFolder, type ObjectStore, openObjectStore } from '@medmesh/objects';
import { inference, lifecycle, model, openInference } from '@medmesh/proto';
import { keyOf, openRecords } from '@medmesh/records';
import { type Client, createClient } from '@medmesh/rpc';
import { type NatsServer, type RunningProcess, spawnProcess, startNats, tempDir, waitFor } from '@medmesh/testkit';
import { loadTokenizer } from '@medmesh/text';
import { type BaseFacts, writeAdapter, writeBase } from './model-fixture.ts';

/** A broker, a folder as object store, and what is recorded in them. */
export type InferenceWorld = {
  readonly nats: NatsServer;
  readonly store: ObjectStore;
  readonly catalog: Catalog;
  /** Stores a base with random weights under `projects/p/models/{id}`. */
  putBase(id: string, seed: number): Promise<BaseFacts>;
  /** Trains an adapter of a base and records it as `projects/p/adapters/{id}`. */
  putAdapter(id: string, base: BaseFacts, seed: number): Promise<StoredAdapter>;
  /** Records a folder as an adapter, as it is. */
  recordAdapter(id: string, base: BaseFacts, folder: { dir: string; templateDigest: string }): Promise<StoredAdapter>;
  /** Starts the service. */
  start(env?: Record<string, string>): Promise<RunningInference>;
  close(): Promise<void>;
};

export type StoredAdapter = { name: string; digest: string; dir: string; templateDigest: string };

/** The service as a process of its own, and clients of it. */
export type RunningInference = {
  readonly answers: Client<inference.InferenceServiceDefinition>;
  readonly admin: Client<inference.InferenceAdminServiceDefinition>;
  readonly oip: Client<openInference.GRPCInferenceServiceDefinition>;
  readonly process: RunningProcess;
  readonly address: string;
};

const service = resolve(import.meta.dirname, '..');

export async function openInferenceWorld(): Promise<InferenceWorld> {
  const folder = tempDir('inference');
  const nats = await startNats();
  const stopping = new AbortController();
  const log = createLogger({ service: 'test', level: 'silent' });
  const nc = await connectNats({ url: nats.url, name: 'test', log, signal: stopping.signal });
  const catalog = await openCatalog(await openRecords(nc));
  const storeUrl = `file://${join(folder, 'store')}`;
  const store = await openObjectStore({ url: storeUrl });
  const processes: RunningProcess[] = [];
  let started = 0;

  const world: InferenceWorld = {
    nats,
    store,
    catalog,
    async putBase(id, seed) {
      const dir = await writeBase(seed);
      const { manifest, digest } = await collectFolder(store, dir, 'model', {});
      const tokenizerDigest = (await loadTokenizer(dir)).digest;
      const name = `projects/p/models/${id}`;
      await catalog.models.create(
        keyOf(name),
        model.Model.fromPartial({
          name,
          state: model.Model_State.READY,
          digest,
          tokenizerDigest,
          files: artifactFiles(manifest),
        }),
      );
      return { dir, name, digest, tokenizerDigest };
    },
    putAdapter: async (id, base, seed) => world.recordAdapter(id, base, await writeAdapter(base, seed)),
    async recordAdapter(id, base, { dir, templateDigest }) {
      const { manifest, digest } = await collectFolder(store, dir, 'adapter', {});
      const name = `projects/p/adapters/${id}`;
      await catalog.adapters.create(
        keyOf(name),
        lifecycle.Adapter.fromPartial({
          name,
          state: lifecycle.Adapter_State.ACTIVE,
          digest,
          files: artifactFiles(manifest),
          baseModel: base.name,
          baseDigest: base.digest,
          tokenizerDigest: base.tokenizerDigest,
          templateDigest,
        }),
      );
      return { name, digest, dir, templateDigest };
    },
    async start(env = {}) {
      // Counted before anything is waited for: several may start at once.
      started += 1;
      const portFile = join(folder, `ports-${started}.json`);
      const process_ = await spawnProcess({
        command: process.execPath,
        args: ['--import', '@medmesh/telemetry/register', join(service, 'src/main.ts')],
        cwd: service,
        env: {
          NATS_URL: nats.url,
          OBJECT_STORE_URL: storeUrl,
          CACHE_DIR: join(folder, `cache-${started}`),
          PORT_FILE: portFile,
          LOG_LEVEL: 'trace',
          SHUTDOWN_GRACE_MS: '30000',
          ...env,
        },
      });
      processes.push(process_);
      const text = await waitFor(() => readFile(portFile, 'utf8'), { what: 'the service to listen' });
      const address = `127.0.0.1:${(JSON.parse(text) as { grpc: number }).grpc}`;
      return {
        answers: createClient(inference.InferenceServiceDefinition, address),
        admin: createClient(inference.InferenceAdminServiceDefinition, address),
        oip: createClient(openInference.GRPCInferenceServiceDefinition, address),
        process: process_,
        address,
      };
    },
    async close() {
      stopping.abort();
      await Promise.all(processes.map((one) => one.stop()));
      await nc.close();
      await nats.stop();
    },
  };
  return world;
}
