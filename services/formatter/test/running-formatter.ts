import { mkdirSync, readdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { artifactFiles, type Catalog, openCatalog } from '@medmesh/catalog';
import { connectNats, createPublisher, ensureStreams } from '@medmesh/events';
import { createLogger } from '@medmesh/log';
import { collectFolder, type ObjectStore, openObjectStore } from '@medmesh/objects';
import { dataset, type longrunning, model } from '@medmesh/proto';
import { keyOf, openRecords } from '@medmesh/records';
import { type Client, createClient } from '@medmesh/rpc';
import { createOperations, type Operations } from '@medmesh/service';
import { type NatsServer, type RunningProcess, spawnProcess, startNats, tempDir } from '@medmesh/testkit';
import { loadTokenizer } from '@medmesh/text';
import { writeTinyTokenizer } from '@medmesh/text/testing';

export const modelName = 'projects/p/models/tiny';

/** The formatter as a process of its own, with a broker and a folder as object store, and a client of it. */
export type RunningFormatter = {
  readonly datasets: Client<dataset.DatasetServiceDefinition>;
  readonly tokenizers: Client<dataset.TokenizerServiceDefinition>;
  readonly operations: Operations;
  readonly catalog: Catalog;
  readonly store: ObjectStore;
  readonly process: RunningProcess;
  readonly nats: NatsServer;
  /** A folder whose files may be named as `file://` sources. */
  readonly importsDir: string;
  /** Every message that the broker keeps, as text. */
  brokerContent(): Promise<string>;
  /** Waits for an operation and decodes its response; a failed one is returned as its status. */
  finish<T>(operation: longrunning.Operation, type: { decode(bytes: Uint8Array): T }): Promise<T>;
  upload(fileName: string, bytes: Uint8Array | string): Promise<string>;
  stop(): Promise<void>;
};

const main = resolve(import.meta.dirname, '../src/main.ts');

/** Starts it with a folder as object store, or with the S3 store that `s3` names. */
export async function startFormatterProcess(
  env: Record<string, string> = {},
  s3?: { readonly url: string; readonly accessKey: string; readonly secretKey: string },
): Promise<RunningFormatter> {
  const folder = tempDir('formatter');
  const nats = await startNats();
  const storeUrl = s3?.url ?? `file://${join(folder, 'store')}`;
  const importsDir = join(folder, 'imports');
  mkdirSync(importsDir);
  const portFile = join(folder, 'ports.json');
  const child = await spawnProcess({
    command: process.execPath,
    args: ['--import', '@medmesh/telemetry/register', main],
    cwd: resolve(import.meta.dirname, '..'),
    env: {
      NATS_URL: nats.url,
      OBJECT_STORE_URL: storeUrl,
      ...(s3 === undefined ? {} : { S3_ACCESS_KEY: s3.accessKey, S3_SECRET_KEY: s3.secretKey }),
      URI_ROOTS: importsDir,
      CACHE_DIR: join(folder, 'cache'),
      PORT_FILE: portFile,
      LOG_LEVEL: 'trace',
      ...env,
    },
  });
  const stopping = new AbortController();
  const log = createLogger({ service: 'test', level: 'silent' });
  const nc = await connectNats({ url: nats.url, name: 'test', log, signal: stopping.signal });
  await ensureStreams(nc);
  const records = await openRecords(nc);
  const catalog = await openCatalog(records);
  const store = await openObjectStore({ url: storeUrl, accessKey: s3?.accessKey, secretKey: s3?.secretKey });
  await putTinyModel(catalog, store, folder);
  const operations = await createOperations({
    nc,
    records,
    publisher: createPublisher(nc),
    log,
    signal: stopping.signal,
  });
  const { grpc } = await untilWritten(portFile, child);
  const address = `127.0.0.1:${grpc}`;
  const datasets = createClient(dataset.DatasetServiceDefinition, address);

  return {
    datasets,
    tokenizers: createClient(dataset.TokenizerServiceDefinition, address),
    operations,
    catalog,
    store,
    process: child,
    nats,
    importsDir,
    async brokerContent() {
      await nats.stop();
      const files = readdirSync(nats.storeDir, { recursive: true, withFileTypes: true }).filter((f) => f.isFile());
      const contents = await Promise.all(files.map((f) => readFile(join(f.parentPath, f.name), 'latin1')));
      return contents.join('\n');
    },
    async finish(operation, type) {
      const done = await operations.wait(operation.name, { seconds: 60, nanos: 0 }, AbortSignal.timeout(60_000));
      if (done.result?.$case !== 'response')
        throw new Error(`${operation.name}: ${JSON.stringify(done.result ?? 'not done')}`);
      return type.decode(done.result.value.value);
    },
    async upload(fileName, bytes) {
      async function* messages() {
        yield {
          data: { $case: 'header' as const, value: { parent: 'projects/p', fileName, sizeBytes: 0, digest: '' } },
        };
        const all = Buffer.from(bytes as string);
        for (let at = 0; at < all.length; at += 50_000)
          yield { data: { $case: 'chunk' as const, value: all.subarray(at, at + 50_000) } };
      }
      return (await datasets.uploadDatasetFile(messages())).digest;
    },
    async stop() {
      stopping.abort();
      await child.stop();
      await nc.close();
      await nats.stop();
    },
  };
}

/** Registers the tiny tokenizer as a model, as an import would. */
async function putTinyModel(catalog: Catalog, store: ObjectStore, folder: string): Promise<void> {
  const dir = await writeTinyTokenizer(join(folder, 'model'));
  const tokenizer = await loadTokenizer(dir);
  const { manifest, digest } = await collectFolder(store, dir, 'model', {});
  await catalog.models.create(
    keyOf(modelName),
    model.Model.fromPartial({
      name: modelName,
      state: model.Model_State.READY,
      digest,
      tokenizerDigest: tokenizer.digest,
      contextLength: 4096,
      files: artifactFiles(manifest),
    }),
  );
}

async function untilWritten(path: string, child: RunningProcess): Promise<{ grpc: number }> {
  for (let i = 0; i < 600; i++) {
    const text = await readFile(path, 'utf8').catch(() => undefined);
    if (text !== undefined) return JSON.parse(text) as { grpc: number };
    await new Promise((resolve_) => setTimeout(resolve_, 50));
  }
  throw new Error(`the formatter did not start:\n${child.lines().slice(-20).join('\n')}`);
}
