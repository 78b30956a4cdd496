import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { repositoryRoot, type S3Server, s3Missing, spawnProcess, startS3, tempDir } from '@medmesh/testkit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Cache, type Manifest, type ObjectStore, openCache, openObjectStore } from './index.ts';

const kilobyte = 1000;

/** Stores one blob of `sizeBytes` under each path. */
async function putModel(
  store: ObjectStore,
  sizes: Record<string, number>,
): Promise<{ manifest: Manifest; contents: Map<string, Buffer> }> {
  const contents = new Map(Object.entries(sizes).map(([path, size]) => [path, randomBytes(size)]));
  const files = await Promise.all(
    [...contents].map(async ([path, content]) => ({ path, ...(await store.putBlob(content)) })),
  );
  return { manifest: { kind: 'model', files, metadata: {} }, contents };
}

/** A store that counts what is read from it. */
function counted(store: ObjectStore): { store: ObjectStore; reads: string[] } {
  const reads: string[] = [];
  return {
    reads,
    store: {
      ...store,
      readBlob(digest, o) {
        reads.push(digest);
        return store.readBlob(digest, o);
      },
    },
  };
}

const keptIn = (dir: string): string[] =>
  readdirSync(join(dir, 'blobs'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => `sha256:${entry.name}`);

const inFile = (cacheDir: string, digest: string): string =>
  join(cacheDir, 'blobs', digest.slice(7, 9), digest.slice(7));

function expectLaidOut(dir: string, contents: Map<string, Buffer>): void {
  for (const [path, content] of contents) expect(readFileSync(join(dir, path)).equals(content)).toBe(true);
}

describe('a cache before a file store', () => {
  const openNew = async () => {
    const store = await openObjectStore({ url: `file://${tempDir('store')}` });
    const dir = join(tempDir('cache'), 'cache');
    return { store, dir, cache: openCache({ dir, maxBytes: 1, store }) };
  };

  test('lays files out as links to the store, without a copy', async () => {
    const { store, cache } = await openNew();
    const { manifest, contents } = await putModel(store, {
      'config.json': 100,
      'weights/model.safetensors': 300 * kilobyte,
    });
    const view = await cache.materialize(manifest);
    expectLaidOut(view.dir, contents);
    const stored = store.blobPath!(manifest.files[1]!.digest);
    expect(statSync(join(view.dir, 'weights/model.safetensors')).ino).toBe(statSync(stored).ino);
    view.release();
    expect(existsSync(view.dir)).toBe(false);
    expect(existsSync(stored)).toBe(true);
  });

  test('finds damage at the first use, and not again what it has verified', async () => {
    const { store, cache } = await openNew();
    const { manifest } = await putModel(store, { a: 1000 });
    (await cache.materialize(manifest)).release();
    const path = store.blobPath!(manifest.files[0]!.digest);
    chmodSync(path, 0o644);
    const damaged = readFileSync(path);
    damaged[0]! ^= 1;
    writeFileSync(path, damaged);
    await expect(cache.materialize(manifest)).rejects.toMatchObject({ code: 'data_loss', reason: 'ARTIFACT_CORRUPT' });
  });

  test('refuses a manifest that leads out of its folder, and leaves nothing behind', async () => {
    const { store, cache, dir } = await openNew();
    const { manifest } = await putModel(store, { a: 10 });
    (await cache.materialize(manifest)).release();
    for (const path of ['../x', '/tmp/x', 'a\0b', 'b/../../x']) {
      const hostile = { ...manifest, files: [{ ...manifest.files[0]!, path }] };
      await expect(cache.materialize(hostile)).rejects.toMatchObject({
        code: 'invalid_argument',
        reason: 'MANIFEST_INVALID',
      });
    }
    const absent = { ...manifest, files: [{ ...manifest.files[0]!, digest: `sha256:${'0'.repeat(64)}` }] };
    await expect(cache.materialize(absent)).rejects.toMatchObject({ code: 'not_found', reason: 'BLOB_NOT_FOUND' });
    expect(readdirSync(join(dir, 'views'))).toEqual([]);
  });

  test('in a folder that cannot be used says which', async () => {
    const { store } = await openNew();
    const file = join(tempDir('cache'), 'file');
    writeFileSync(file, '');
    const { manifest } = await putModel(store, { a: 10 });
    await expect(openCache({ dir: file, maxBytes: 1, store }).materialize(manifest)).rejects.toMatchObject({
      code: 'failed_precondition',
      reason: 'CACHE_FOLDER_UNUSABLE',
    });
  });
});

const missing = s3Missing();
describe.skipIf(missing !== null)(
  `a cache before an S3 store${missing === null ? '' : ` (skipped: ${missing})`}`,
  () => {
    let s3: S3Server;
    let url: string;
    let store: ObjectStore;
    beforeAll(async () => {
      s3 = (await startS3())!;
      url = `s3://cached?endpoint=${s3.endpoint}`;
      store = await openObjectStore({ url, accessKey: s3.accessKey, secretKey: s3.secretKey });
    });
    afterAll(async () => s3?.stop());

    const openNew = (maxBytes: number, dir = join(tempDir('cache'), 'cache')) => {
      const { store: watched, reads } = counted(store);
      const cache: Cache = openCache({ dir, maxBytes, store: watched });
      return { cache, dir, reads };
    };

    test('fetches each blob once, also for callers that ask at the same time', async () => {
      const { manifest, contents } = await putModel(store, { a: 50 * kilobyte, 'b/c': 20 * kilobyte });
      const twice: Manifest = { ...manifest, files: [...manifest.files, { ...manifest.files[0]!, path: 'copy-of-a' }] };
      const { cache, reads } = openNew(1000 * kilobyte);
      const views = await Promise.all(Array.from({ length: 5 }, () => cache.materialize(twice)));
      for (const view of views) expectLaidOut(view.dir, contents);
      expect(reads).toHaveLength(2);
      for (const view of views) view.release();
      expectLaidOut((await cache.materialize(twice)).dir, contents);
      expect(reads).toHaveLength(2);
    });

    test('a damaged copy is found and fetched again', async () => {
      const { manifest, contents } = await putModel(store, { a: 50 * kilobyte });
      const { cache, dir, reads } = openNew(1000 * kilobyte);
      (await cache.materialize(manifest)).release();
      const path = inFile(dir, manifest.files[0]!.digest);
      chmodSync(path, 0o644);
      writeFileSync(path, randomBytes(50 * kilobyte));
      const view = await cache.materialize(manifest);
      expectLaidOut(view.dir, contents);
      expect(reads).toHaveLength(2);
    });

    test('damage in the store itself is data loss, and the damaged bytes are not kept', async () => {
      const { Client } = await import('minio');
      const { hostname, port } = new URL(s3.endpoint);
      const client = new Client({
        endPoint: hostname,
        port: Number(port),
        useSSL: false,
        accessKey: s3.accessKey,
        secretKey: s3.secretKey,
      });
      const { manifest } = await putModel(store, { a: 1000 });
      const { digest } = manifest.files[0]!;
      await client.putObject('cached', `blobs/sha256/${digest.slice(7, 9)}/${digest.slice(7)}`, randomBytes(1000));
      const { cache, dir } = openNew(1000 * kilobyte);
      await expect(cache.materialize(manifest)).rejects.toMatchObject({
        code: 'data_loss',
        reason: 'ARTIFACT_CORRUPT',
      });
      const wrongSize = await putModel(store, { b: 1000 });
      wrongSize.manifest.files[0]!.sizeBytes = 999;
      await expect(cache.materialize(wrongSize.manifest)).rejects.toMatchObject({ reason: 'ARTIFACT_CORRUPT' });
      expect(keptIn(dir)).toEqual([]);
      expect(readdirSync(join(dir, 'incoming'))).toEqual([]);
    });

    test('the least recently used goes first, and what is in use never', async () => {
      const { cache, dir } = openNew(350 * kilobyte);
      const models = await Promise.all(['a', 'b', 'c', 'd'].map((path) => putModel(store, { [path]: 100 * kilobyte })));
      const [a, b, c, d] = models.map(({ manifest }) => manifest) as [Manifest, Manifest, Manifest, Manifest];
      const pinned = await cache.materialize(a);
      for (const manifest of [b, c, b]) {
        (await cache.materialize(manifest)).release();
        await sleep(20);
      }
      (await cache.materialize(d)).release();
      const kept = keptIn(dir);
      // c was used before b; a was used before both but is held.
      expect(new Set(kept)).toEqual(new Set([a, b, d].map((manifest) => manifest.files[0]!.digest)));
      expectLaidOut(pinned.dir, models[0]!.contents);
      pinned.release();
      (await cache.materialize(c)).release();
      expect(keptIn(dir)).not.toContain(a.files[0]!.digest);
      expect(keptIn(dir)).toHaveLength(3);
    });

    test('what cannot fit is refused with the numbers, before anything is fetched or when all else is in use', async () => {
      const { cache, reads } = openNew(150 * kilobyte);
      const large = await putModel(store, { a: 100 * kilobyte, b: 100 * kilobyte });
      await expect(cache.materialize(large.manifest)).rejects.toMatchObject({
        code: 'resource_exhausted',
        reason: 'CACHE_FULL',
      });
      expect(reads).toHaveLength(0);
      const first = await putModel(store, { a: 100 * kilobyte });
      const second = await putModel(store, { a: 100 * kilobyte });
      const held = await cache.materialize(first.manifest);
      await expect(cache.materialize(second.manifest)).rejects.toMatchObject({
        reason: 'CACHE_FULL',
        message: expect.stringContaining('100000 of them are in use'),
      });
      held.release();
      expectLaidOut((await cache.materialize(second.manifest)).dir, second.contents);
    });

    /** A cache whose store stops in the middle of a blob, after its first piece, until the gate is opened. */
    const openGated = () => {
      const { store: watched, reads } = counted(store);
      const begun = Promise.withResolvers<void>();
      const gate = Promise.withResolvers<void>();
      const gated: ObjectStore = {
        ...watched,
        async *readBlob(digest, o) {
          for await (const piece of watched.readBlob(digest, o)) {
            yield piece;
            begun.resolve();
            await gate.promise;
          }
        },
      };
      const dir = join(tempDir('cache'), 'cache');
      const cache = openCache({ dir, maxBytes: 10_000 * kilobyte, store: gated });
      return { cache, dir, reads, begun: begun.promise, open: gate.resolve };
    };

    test.each([
      ['first', 0],
      ['second', 1],
    ])(
      'of two callers that share a fetch, the %s leaves at once when it gives up, and the other gets its files',
      async (_, leaver) => {
        const { manifest, contents } = await putModel(store, { a: 4_000 * kilobyte });
        const { cache, dir, reads, begun, open } = openGated();
        const stop = new AbortController();
        const calls = [0, 1].map((caller) => cache.materialize(manifest, caller === leaver ? stop.signal : undefined));
        await begun;
        stop.abort();
        // The store gives nothing more until the gate opens: who leaves does not wait for it.
        await expect(calls[leaver]).rejects.toThrow(/abort/);
        open();
        expectLaidOut((await calls[1 - leaver]!).dir, contents);
        expect(reads).toHaveLength(1);
        expect(readdirSync(join(dir, 'incoming'))).toEqual([]);
        expect(readdirSync(join(dir, 'claims'))).toEqual([]);
        expect(readdirSync(join(dir, 'views'))).toHaveLength(1);
      },
    );

    test('a fetch that nobody wants any more ends and leaves nothing behind, and the next caller fetches anew', async () => {
      const { manifest, contents } = await putModel(store, { a: 4_000 * kilobyte });
      const { cache, dir, reads, begun, open } = openGated();
      const stops = [new AbortController(), new AbortController()];
      const calls = stops.map(({ signal }) => cache.materialize(manifest, signal));
      await begun;
      for (const [i, stop] of stops.entries()) {
        stop.abort();
        await expect(calls[i]).rejects.toThrow(/abort/);
      }
      for (const folder of ['incoming', 'claims', 'views']) expect(readdirSync(join(dir, folder))).toEqual([]);
      open();
      expectLaidOut((await cache.materialize(manifest)).dir, contents);
      expect(reads).toHaveLength(2);
    });

    const startProcess = (dir: string, digest: string, then: 'end' | 'stay', maxBytes = 10_000 * kilobyte) =>
      spawnProcess({
        command: process.execPath,
        args: [
          `${repositoryRoot}/libs/objects/test/materialize.ts`,
          url,
          s3.accessKey,
          s3.secretKey,
          dir,
          String(maxBytes),
          digest,
          then,
        ],
      });

    test('several processes lay out the same manifest in the same cache at once', async () => {
      const { manifest, contents } = await putModel(store, { a: 3_000 * kilobyte, b: 100, c: 2_000 * kilobyte });
      const digest = await store.putManifest(manifest);
      const dir = join(tempDir('cache'), 'cache');
      const processes = await Promise.all(Array.from({ length: 4 }, () => startProcess(dir, digest, 'end')));
      for (const one of processes) expect((await one.exited).code, one.lines().join('\n')).toBe(0);
      expect(keptIn(dir)).toHaveLength(3);
      expect(readdirSync(join(dir, 'incoming'))).toEqual([]);
      expect(readdirSync(join(dir, 'views'))).toEqual([]);
      expectLaidOut((await openNew(10_000 * kilobyte, dir).cache.materialize(manifest)).dir, contents);
    });

    test('what another process uses is not evicted while it lives, and is free once it was killed', async () => {
      const dir = join(tempDir('cache'), 'cache');
      const theirs = await putModel(store, { a: 100 * kilobyte });
      const ours = await putModel(store, { b: 100 * kilobyte });
      const other = await startProcess(dir, await store.putManifest(theirs.manifest), 'stay', 150 * kilobyte);
      const [, view] = await other.waitForLine(/materialized a in (\S+)/);
      const { cache } = openNew(150 * kilobyte, dir);
      await expect(cache.materialize(ours.manifest)).rejects.toMatchObject({ reason: 'CACHE_FULL' });
      expectLaidOut(view!, theirs.contents);
      await other.kill();
      expectLaidOut((await cache.materialize(ours.manifest)).dir, ours.contents);
      expect(existsSync(view!)).toBe(false);
    });

    test('what a process of another machine left is kept until it has been silent for long', async () => {
      const dir = join(tempDir('cache'), 'cache');
      for (const folder of ['views', 'owners']) mkdirSync(join(dir, folder), { recursive: true });
      const stranger = 'ffffffffffff.1.1';
      mkdirSync(join(dir, 'views', `${stranger}.1`));
      writeFileSync(join(dir, 'owners', stranger), '');
      const { manifest } = await putModel(store, { a: 10 });
      (await openNew(1000, dir).cache.materialize(manifest)).release();
      expect(existsSync(join(dir, 'views', `${stranger}.1`))).toBe(true);
      const longAgo = Date.now() / 1000 - 3600;
      utimesSync(join(dir, 'owners', stranger), longAgo, longAgo);
      (await openNew(1000, dir).cache.materialize(manifest)).release();
      expect(existsSync(join(dir, 'views', `${stranger}.1`))).toBe(false);
    });

    test('closing releases everything', async () => {
      const { manifest } = await putModel(store, { a: 10 });
      const { cache, dir } = openNew(1000);
      await cache.materialize(manifest);
      await cache.close();
      expect(readdirSync(join(dir, 'views'))).toEqual([]);
      expect(readdirSync(join(dir, 'owners'))).toEqual([]);
    });
  },
);
