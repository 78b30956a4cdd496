import { randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { tempDir } from '@medmesh/testkit';
import { expect, test } from 'vitest';
import { collectFolder, type Manifest, type ObjectStore } from '../src/index.ts';

/** Opens a new, empty store of the home under test, and looks at what it holds. */
export type StoreUnderTest = {
  open(): Promise<{
    store: ObjectStore;
    /** Every file or object in the store, by its key. */
    keys: () => Promise<string[]>;
    /** Uploads that were begun and neither completed nor removed. */
    unfinished: () => Promise<number>;
    /** A place that the store lets URIs touch. */
    area: string;
  }>;
};

const bytesOf = async (pieces: AsyncIterable<Uint8Array>): Promise<Buffer> =>
  Buffer.concat(await Array.fromAsync(pieces));

async function* inChunks(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

const mebibyte = 1024 * 1024;

/** What every home of blobs promises. */
export function testStoreContract(home: StoreUnderTest): void {
  test('a blob reads back as it was put, whatever its source', async () => {
    const { store } = await home.open();
    const content = randomBytes(700_001);
    const path = join(tempDir('blob'), 'file');
    writeFileSync(path, content);
    const fromBytes = await store.putBlob(content);
    expect(fromBytes.sizeBytes).toBe(content.length);
    expect(await store.putBlob({ path })).toEqual(fromBytes);
    expect(await store.putBlob(inChunks(content, 1000))).toEqual(fromBytes);
    expect((await bytesOf(store.readBlob(fromBytes.digest))).equals(content)).toBe(true);
    expect(await store.blobSize(fromBytes.digest)).toBe(content.length);
  });

  test('an empty blob is a blob', async () => {
    const { store } = await home.open();
    const { digest } = await store.putBlob(new Uint8Array());
    expect(digest).toBe('sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');
    expect(await bytesOf(store.readBlob(digest))).toHaveLength(0);
    expect(await store.putBlob(inChunks(Buffer.alloc(0), 1))).toEqual({ digest, sizeBytes: 0 });
  });

  test('equal content is stored once', async () => {
    const { store, keys } = await home.open();
    const content = randomBytes(100_000);
    await Promise.all([store.putBlob(content), store.putBlob(inChunks(content, 777)), store.putBlob(content)]);
    expect(await keys()).toHaveLength(1);
  });

  test('ranges are the bytes between, and end with the blob', async () => {
    const { store } = await home.open();
    const content = randomBytes(600_000);
    const { digest } = await store.putBlob(content);
    for (const [offset, length] of [
      [0, 1],
      [1, 0],
      [299_999, 5],
      [0, 600_000],
      [599_999, 10],
      [600_000, 10],
      [700_000, 1],
    ] as const) {
      expect(await bytesOf(store.readBlob(digest, { offset, length }))).toEqual(
        content.subarray(offset, offset + length),
      );
    }
    expect(await bytesOf(store.readBlob(digest, { offset: 599_990 }))).toEqual(content.subarray(599_990));
    await expect(bytesOf(store.readBlob(digest, { offset: -1 }))).rejects.toMatchObject({ code: 'invalid_argument' });
  });

  test('a blob that is not there is reported as such', async () => {
    const { store } = await home.open();
    const digest = `sha256:${'0'.repeat(64)}`;
    expect(await store.hasBlob(digest)).toBe(false);
    await expect(store.blobSize(digest)).rejects.toMatchObject({ code: 'not_found', reason: 'BLOB_NOT_FOUND' });
    await expect(bytesOf(store.readBlob(digest))).rejects.toMatchObject({
      code: 'not_found',
      reason: 'BLOB_NOT_FOUND',
    });
    await expect(store.hasBlob('sha256:../../etc/passwd')).rejects.toMatchObject({ reason: 'DIGEST_INVALID' });
  });

  test('content that is not what was promised is refused and leaves nothing', async () => {
    const { store, keys, unfinished } = await home.open();
    const { digest: other } = await store.putBlob(Buffer.from('other'));
    const before = await keys();
    const large = randomBytes(18 * mebibyte);
    for (const source of [Buffer.from('content'), inChunks(Buffer.from('content'), 3), inChunks(large, mebibyte)]) {
      await expect(store.putBlob(source, { expectedDigest: `sha256:${'1'.repeat(64)}` })).rejects.toMatchObject({
        code: 'data_loss',
        reason: 'DIGEST_MISMATCH',
      });
    }
    await expect(store.putBlob(inChunks(Buffer.from('content'), 3), { expectedDigest: other })).rejects.toMatchObject({
      reason: 'DIGEST_MISMATCH',
    });
    expect(await keys()).toEqual(before);
    expect(await unfinished()).toBe(0);
  });

  test('a promised digest that holds is no obstacle', async () => {
    const { store } = await home.open();
    const content = randomBytes(18 * mebibyte);
    const { digest } = await store.putBlob(inChunks(content, 300_000));
    const { store: another } = await home.open();
    expect(await another.putBlob(inChunks(content, mebibyte), { expectedDigest: digest })).toEqual({
      digest,
      sizeBytes: content.length,
    });
    expect(await another.putBlob(inChunks(content, mebibyte), { expectedDigest: digest })).toEqual({
      digest,
      sizeBytes: content.length,
    });
    expect((await bytesOf(another.readBlob(digest))).equals(content)).toBe(true);
  });

  test('a source that fails in the middle leaves nothing behind', async () => {
    const { store, keys, unfinished } = await home.open();
    for (const sizeBytes of [100_000, 20 * mebibyte]) {
      async function* failing(): AsyncGenerator<Uint8Array> {
        yield* inChunks(randomBytes(sizeBytes), mebibyte);
        throw new TypeError('the source broke');
      }
      await expect(store.putBlob(failing())).rejects.toThrow('the source broke');
    }
    expect(await keys()).toEqual([]);
    expect(await unfinished()).toBe(0);
  });

  test('a put that is aborted ends at once and leaves nothing behind', async () => {
    const { store, keys, unfinished } = await home.open();
    const stop = new AbortController();
    async function* endless(): AsyncGenerator<Uint8Array> {
      yield* inChunks(randomBytes(20 * mebibyte), mebibyte);
      setTimeout(() => stop.abort(), 10);
      await new Promise(() => undefined);
    }
    await expect(store.putBlob(endless(), { signal: stop.signal })).rejects.toThrow(/abort/);
    expect(await keys()).toEqual([]);
    expect(await unfinished()).toBe(0);
    await expect(store.putBlob(Buffer.from('x'), { signal: AbortSignal.abort() })).rejects.toThrow(/abort/);
    expect(await keys()).toEqual([]);
  });

  test('nothing can be read under a digest while its put still runs', async () => {
    const { store } = await home.open();
    const content = randomBytes(20 * mebibyte);
    const { store: elsewhere } = await home.open();
    const { digest } = await elsewhere.putBlob(content);
    let seen: boolean | undefined;
    async function* source(): AsyncGenerator<Uint8Array> {
      yield* inChunks(content, mebibyte);
      seen = await store.hasBlob(digest);
    }
    await store.putBlob(source());
    expect(seen).toBe(false);
    expect(await store.hasBlob(digest)).toBe(true);
  });

  test('a deleted blob is gone, deleting it again changes nothing, and its content can be stored again', async () => {
    const { store } = await home.open();
    const kept = await store.putBlob(Buffer.from('kept'));
    const { digest } = await store.putBlob(Buffer.from('gone'));
    await store.deleteBlob(digest);
    expect(await store.hasBlob(digest)).toBe(false);
    await store.deleteBlob(digest);
    await expect(store.deleteBlob('sha256:../../kept')).rejects.toMatchObject({ code: 'invalid_argument' });
    expect(await store.hasBlob(kept.digest)).toBe(true);
    expect((await store.putBlob(Buffer.from('gone'))).digest).toBe(digest);
    expect(await store.hasBlob(digest)).toBe(true);
  });

  test('progress counts the bytes of the source', async () => {
    const { store } = await home.open();
    const seen: number[] = [];
    await store.putBlob(inChunks(randomBytes(1_000_000), 100_000), { onProgress: (bytes) => seen.push(bytes) });
    expect(seen.at(-1)).toBe(1_000_000);
    expect(seen).toEqual([...seen].sort((a, b) => a - b));
  });

  test('reading stops when its signal aborts', async () => {
    const { store } = await home.open();
    const { digest } = await store.putBlob(randomBytes(4 * mebibyte));
    const stop = new AbortController();
    const reading = (async () => {
      for await (const _ of store.readBlob(digest, { signal: stop.signal })) {
        stop.abort();
        await sleep(1);
      }
    })();
    await expect(reading).rejects.toThrow(/abort/);
  });

  test('a manifest comes back verified, and one that names absent blobs is refused', async () => {
    const { store } = await home.open();
    const blob = await store.putBlob(Buffer.from('weights'));
    const manifest: Manifest = {
      kind: 'model',
      files: [{ path: 'model.safetensors', ...blob }],
      metadata: { architecture: 'qwen2' },
    };
    const digest = await store.putManifest(manifest);
    expect(await store.getManifest(digest)).toEqual(manifest);
    expect(await store.putManifest({ ...manifest, metadata: { ...manifest.metadata } })).toBe(digest);
    const absent = { ...blob, digest: `sha256:${'2'.repeat(64)}` };
    await expect(store.putManifest({ ...manifest, files: [{ path: 'a', ...absent }] })).rejects.toMatchObject({
      code: 'failed_precondition',
      reason: 'BLOB_MISSING',
    });
    await expect(
      store.putManifest({ ...manifest, files: [{ path: 'a', ...blob, sizeBytes: 1 }] }),
    ).rejects.toMatchObject({ reason: 'BLOB_MISSING' });
    await expect(store.getManifest(blob.digest)).rejects.toMatchObject({
      code: 'data_loss',
      reason: 'MANIFEST_INVALID',
    });
  });

  test('a folder is collected with every file under its path', async () => {
    const { store } = await home.open();
    const folder = tempDir('collect');
    mkdirSync(join(folder, 'tokenizer'));
    writeFileSync(join(folder, 'config.json'), '{}');
    writeFileSync(join(folder, 'tokenizer', 'merges.txt'), 'a b');
    const { manifest, digest } = await collectFolder(store, folder, 'model', { note: 'x' });
    expect(manifest.files.map((file) => [file.path, file.sizeBytes])).toEqual([
      ['config.json', 2],
      ['tokenizer/merges.txt', 3],
    ]);
    expect(await store.getManifest(digest)).toEqual(manifest);
    const seen: number[] = [];
    const again = await collectFolder(
      store,
      folder,
      'model',
      { note: 'x' },
      { immutable: true, onProgress: (n) => seen.push(n) },
    );
    expect([again.digest, seen.at(-1)]).toEqual([digest, 5]);
  });

  test('a URI is written complete or not at all, listed, measured and read', async () => {
    const { store, area } = await home.open();
    await store.writeUri(`${area}/out/b/adapter.safetensors`, inChunks(Buffer.from('adapter'), 2));
    await store.writeUri(`${area}/out/a.json`, Buffer.from('{}'));
    async function* failing(): AsyncGenerator<Uint8Array> {
      yield Buffer.from('half');
      throw new TypeError('the source broke');
    }
    await expect(store.writeUri(`${area}/out/c`, failing())).rejects.toThrow('the source broke');
    const entries = await Array.fromAsync(store.listUri(`${area}/out`));
    expect(entries.map(({ path, sizeBytes }) => [path, sizeBytes])).toEqual([
      ['a.json', 2],
      ['b/adapter.safetensors', 7],
    ]);
    expect((await bytesOf(store.readUri(entries[1]!.uri, { offset: 2 }))).toString()).toBe('apter');
    expect(await store.uriSize(`${area}/out/a.json`)).toBe(2);
    expect(await Array.fromAsync(store.listUri(`${area}/out/a.json`))).toMatchObject([
      { path: 'a.json', sizeBytes: 2 },
    ]);
    await expect(bytesOf(store.readUri(`${area}/out/absent`))).rejects.toMatchObject({
      code: 'not_found',
      reason: 'URI_NOT_FOUND',
    });
    await expect(Array.fromAsync(store.listUri(`${area}/absent`))).rejects.toMatchObject({ reason: 'URI_NOT_FOUND' });
  });

  test('a URI of an unknown scheme, or that is none, is refused', async () => {
    const { store, area } = await home.open();
    for (const uri of ['', '/etc/passwd', 'http://example.org/x', 'ftp://x/y', 'file:', 's3:']) {
      await expect((async () => bytesOf(store.readUri(uri)))()).rejects.toMatchObject({ reason: 'URI_INVALID' });
    }
    await expect(store.writeUri(`${area}/folder/`, Buffer.from('x'))).rejects.toMatchObject({ reason: 'URI_INVALID' });
  });
}
