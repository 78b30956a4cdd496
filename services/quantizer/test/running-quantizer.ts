import { readdirSync } from 'node:fs';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { type Catalog, openCatalog } from '@medmesh/catalog';
import { connectNats, createPublisher, ensureStreams } from '@medmesh/events';
import { createLogger } from '@medmesh/log';
import { type ObjectStore, openObjectStore } from '@medmesh/objects';
import { type longrunning, model } from '@medmesh/proto';
import { openRecords } from '@medmesh/records';
import { type Client, createClient, fromStatus } from '@medmesh/rpc';
import { createOperations, type Operations } from '@medmesh/service';
import { type NatsServer, type RunningProcess, spawnProcess, startNats, tempDir, waitFor } from '@medmesh/testkit';

/** The quantizer as a process of its own, with a broker, an object store, and a client of it. */
export type RunningQuantizer = {
  models(): Client<model.ModelServiceDefinition>;
  readonly operations: Operations;
  readonly catalog: Catalog;
  readonly store: ObjectStore;
  readonly nats: NatsServer;
  /** Folders that imports and exports may touch. */
  readonly roots: string;
  readonly staging: string;
  process(): RunningProcess;
  /** Starts the process again, after it was stopped or killed. */
  startAgain(): Promise<void>;
  /** Waits for an operation and decodes its response; a failed one throws the Failure that ended it. */
  finish<T>(operation: longrunning.Operation, type: { decode(bytes: Uint8Array): T }): Promise<T>;
  /** Imports and waits. */
  import(request: Parameters<typeof model.ImportModelRequest.fromPartial>[0]): Promise<model.Model>;
  /** What lies in the staging folder. */
  staged(): string[];
  metadata(operation: longrunning.Operation): Promise<model.ModelOperationMetadata>;
  stop(): Promise<void>;
};

const service = resolve(import.meta.dirname, '..');

export type QuantizerSetup = {
  env?: Record<string, string>;
  /** Default: a folder. */
  store?: { url: string; accessKey: string; secretKey: string; uriRoots: string };
};

export async function startQuantizerProcess(o: QuantizerSetup = {}): Promise<RunningQuantizer> {
  const folder = tempDir('quantizer');
  const roots = join(folder, 'roots');
  const staging = join(folder, 'staging');
  await mkdir(roots);
  const nats = await startNats();
  const storeOptions = o.store ?? { url: `file://${join(folder, 'store')}`, uriRoots: roots };
  const portFile = join(folder, 'ports.json');
  const credentials =
    'accessKey' in storeOptions ? { S3_ACCESS_KEY: storeOptions.accessKey, S3_SECRET_KEY: storeOptions.secretKey } : {};

  const launch = async () => {
    await rm(portFile, { force: true });
    const child = await spawnProcess({
      command: process.execPath,
      args: ['--import', '@medmesh/telemetry/register', join(service, 'src/main.ts')],
      cwd: service,
      env: {
        NATS_URL: nats.url,
        OBJECT_STORE_URL: storeOptions.url,
        URI_ROOTS: storeOptions.uriRoots,
        CACHE_DIR: join(folder, 'cache'),
        STAGING_DIR: staging,
        PORT_FILE: portFile,
        ...credentials,
        ...o.env,
      },
    });
    let ended = false;
    void child.exited.then(() => {
      ended = true;
    });
    const text = await waitFor(() => (ended ? 'ended' : readFile(portFile, 'utf8')), {
      what: 'the quantizer to listen',
      timeoutMs: 30_000,
    });
    if (text === 'ended') throw new Error(`the quantizer did not start:\n${child.lines().slice(-20).join('\n')}`);
    const { grpc } = JSON.parse(text) as { grpc: number };
    return { child, models: createClient(model.ModelServiceDefinition, `127.0.0.1:${grpc}`) };
  };

  let running = await launch();
  const stopping = new AbortController();
  const log = createLogger({ service: 'test', level: 'silent' });
  const nc = await connectNats({ url: nats.url, name: 'test', log, signal: stopping.signal });
  await ensureStreams(nc);
  const records = await openRecords(nc);
  const operations = await createOperations({
    nc,
    records,
    publisher: createPublisher(nc),
    log,
    signal: stopping.signal,
  });
  const store = await openObjectStore({ ...storeOptions, uriRoots: storeOptions.uriRoots.split(',') });

  async function finish<T>(operation: longrunning.Operation, type: { decode(bytes: Uint8Array): T }): Promise<T> {
    const done = await operations.wait(operation.name, { seconds: 100, nanos: 0 }, AbortSignal.timeout(110_000));
    if (done.result?.$case === 'error') throw fromStatus(done.result.value);
    if (done.result?.$case !== 'response')
      throw new Error(`${operation.name} is not done:\n${running.child.lines().slice(-10).join('\n')}`);
    return type.decode(done.result.value.value);
  }

  return {
    models: () => running.models,
    operations,
    catalog: await openCatalog(records),
    store,
    nats,
    roots,
    staging,
    process: () => running.child,
    async startAgain() {
      running = await launch();
    },
    finish,
    import: async (request) =>
      finish(await running.models.importModel({ parent: 'projects/p', ...request }), model.Model),
    staged: () => readdirSync(staging, { recursive: true }).map(String).toSorted(),
    async metadata({ name }) {
      return model.ModelOperationMetadata.decode((await operations.get(name)).metadata!.value);
    },
    async stop() {
      stopping.abort();
      await running.child.stop();
      await nc.close();
      await nats.stop();
    },
  };
}
