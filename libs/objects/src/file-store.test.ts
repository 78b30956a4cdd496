import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { pathToFileURL } from 'node:url';
import { tempDir } from '@medmesh/testkit';
import { describe, expect, test } from 'vitest';
import { testStoreContract } from '../test/store-contract.ts';
import { collectFolder, openObjectStore } from './index.ts';

const filesBelow = (folder: string): string[] =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(folder, join(entry.parentPath, entry.name)));

const openNew = async (uriRoots: string[] = []) => {
  const root = join(tempDir('store'), 'objects');
  return { root, store: await openObjectStore({ url: `file://${root}`, uriRoots }) };
};

describe('a file store', () => {
  testStoreContract({
    async open() {
      const { root, store } = await openNew();
      return { store, keys: async () => filesBelow(root), unfinished: async () => 0, area: `file://${root}/exports` };
    },
  });

  test('keeps a blob as a read-only file named by its digest', async () => {
    const { root, store } = await openNew();
    const { digest } = await store.putBlob(Buffer.from('content'));
    const path = store.blobPath!(digest);
    const hex = digest.slice(7);
    expect(path).toBe(join(root, 'blobs/sha256', hex.slice(0, 2), hex));
    expect(readFileSync(path, 'utf8')).toBe('content');
    expect(statSync(path).mode & 0o222).toBe(0);
  });

  test('takes an immutable file by a link, which is read-only and stays when the file goes', async () => {
    const { root, store } = await openNew();
    const path = join(root, 'finished');
    const content = randomBytes(600_000);
    writeFileSync(path, content);
    const seen: number[] = [];
    const { digest, sizeBytes } = await store.putBlob({ path, immutable: true }, { onProgress: (n) => seen.push(n) });
    expect([sizeBytes, seen.at(-1)]).toEqual([600_000, 600_000]);
    const blob = statSync(store.blobPath!(digest));
    expect([blob.ino, blob.mode & 0o222]).toEqual([statSync(path).ino, 0]);
    rmSync(path);
    expect(Buffer.concat(await Array.fromAsync(store.readBlob(digest)))).toEqual(content);
    expect(readdirSync(join(root, 'tmp'))).toEqual([]);
  });

  test('copies an immutable file that is a link or on another file system', async () => {
    const { root, store } = await openNew();
    const elsewhere = join(mkdtempSync('/dev/shm/medmesh-'), 'finished');
    writeFileSync(elsewhere, 'content');
    symlinkSync(elsewhere, join(root, 'alias'));
    try {
      for (const path of [elsewhere, join(root, 'alias')]) {
        const { digest } = await store.putBlob({ path, immutable: true });
        expect(readFileSync(store.blobPath!(digest), 'utf8')).toBe('content');
        expect(statSync(store.blobPath!(digest)).nlink).toBe(1);
        expect(statSync(elsewhere).mode & 0o222).not.toBe(0);
      }
    } finally {
      rmSync(dirname(elsewhere), { recursive: true });
    }
  });

  test('finds a damaged blob when it is read, and storing the content again heals it', async () => {
    const { store } = await openNew();
    const content = randomBytes(500_000);
    const { digest } = await store.putBlob(content);
    const path = store.blobPath!(digest);
    chmodSync(path, 0o644);
    const damaged = Buffer.from(content);
    damaged[250_000]! ^= 1;
    writeFileSync(path, damaged);
    await expect(Array.fromAsync(store.readBlob(digest))).rejects.toMatchObject({
      code: 'data_loss',
      reason: 'ARTIFACT_CORRUPT',
    });
    await store.putBlob(content);
    expect(Buffer.concat(await Array.fromAsync(store.readBlob(digest)))).toEqual(content);
  });

  test('removes what a crash left behind a day ago, and nothing younger', async () => {
    const { root } = await openNew();
    const old = join(root, 'tmp/old');
    const young = join(root, 'tmp/young');
    writeFileSync(old, 'x');
    writeFileSync(young, 'x');
    const twoDaysAgo = Date.now() / 1000 - 2 * 24 * 3600;
    utimesSync(old, twoDaysAgo, twoDaysAgo);
    await openObjectStore({ url: `file://${root}` });
    expect(existsSync(old)).toBe(false);
    expect(existsSync(young)).toBe(true);
  });

  test('takes no uploads by URL and says so', async () => {
    const { store } = await openNew();
    await expect(store.presignPut('rows.jsonl', 60)).rejects.toMatchObject({
      code: 'failed_precondition',
      reason: 'PRESIGN_NOT_SUPPORTED',
    });
    await expect(Promise.resolve().then(() => store.uriSize('s3://bucket/key'))).rejects.toMatchObject({
      reason: 'STORE_NOT_CONFIGURED',
    });
  });

  test('that cannot be opened says which folder and why', async () => {
    const file = join(tempDir('store'), 'a-file');
    writeFileSync(file, '');
    await expect(openObjectStore({ url: `file://${file}` })).rejects.toMatchObject({
      code: 'failed_precondition',
      reason: 'STORE_FOLDER_UNUSABLE',
    });
    await expect(openObjectStore({ url: 'http://x' })).rejects.toMatchObject({
      code: 'invalid_argument',
      reason: 'STORE_URL_INVALID',
    });
  });
});

describe('a file URI', () => {
  const read = async (store: Awaited<ReturnType<typeof openNew>>['store'], uri: string) =>
    Buffer.concat(await Array.fromAsync(store.readUri(uri))).toString();

  const setUp = async () => {
    const base = realpathSync(tempDir('uris'));
    const allowed = join(base, 'allowed');
    mkdirSync(join(allowed, 'sub'), { recursive: true });
    mkdirSync(join(base, 'allowed-not'));
    writeFileSync(join(base, 'secret'), 'secret');
    writeFileSync(join(base, 'allowed-not/secret'), 'secret');
    writeFileSync(join(allowed, 'file'), 'allowed');
    const { store, root } = await openNew([allowed]);
    return { base, allowed, store, root };
  };

  test('is read within the allowed folders, with escapes and links that stay inside', async () => {
    const { allowed, store } = await setUp();
    writeFileSync(join(allowed, 'with space ä'), 'odd name');
    symlinkSync('../file', join(allowed, 'sub/link'));
    expect(await read(store, `file://${allowed}/file`)).toBe('allowed');
    expect(await read(store, pathToFileURL(join(allowed, 'with space ä')).href)).toBe('odd name');
    expect(await read(store, `file://${allowed}/sub/link`)).toBe('allowed');
  });

  test('outside the allowed folders is refused, whether or not it exists', async () => {
    const { base, allowed, store, root } = await setUp();
    const outside = [
      `${base}/secret`,
      `${base}/absent`,
      `${allowed}/../secret`,
      `${allowed}/%2e%2e/secret`,
      `${base}/allowed-not/secret`,
      '/etc/passwd',
      `${root}/blobs`,
    ];
    for (const path of outside) {
      await expect(read(store, `file://${path}`)).rejects.toMatchObject({
        code: 'permission_denied',
        reason: 'URI_NOT_ALLOWED',
      });
      await expect(store.uriSize(`file://${path}`)).rejects.toMatchObject({ reason: 'URI_NOT_ALLOWED' });
    }
  });

  test('through a symbolic link out of the allowed folders is refused for reading, listing and writing', async () => {
    const { base, allowed, store } = await setUp();
    symlinkSync(join(base, 'secret'), join(allowed, 'link'));
    symlinkSync(base, join(allowed, 'sub/out'));
    await expect(read(store, `file://${allowed}/link`)).rejects.toMatchObject({ reason: 'URI_NOT_ALLOWED' });
    await expect(read(store, `file://${allowed}/sub/out/secret`)).rejects.toMatchObject({ reason: 'URI_NOT_ALLOWED' });
    await expect(Array.fromAsync(store.listUri(`file://${allowed}/sub`))).rejects.toMatchObject({
      reason: 'URI_NOT_ALLOWED',
    });
    await expect(store.writeUri(`file://${allowed}/sub/out/new`, Buffer.from('x'))).rejects.toMatchObject({
      reason: 'URI_NOT_ALLOWED',
    });
    await expect(store.writeUri(`file://${allowed}/sub/out/new/deep`, Buffer.from('x'))).rejects.toMatchObject({
      reason: 'URI_NOT_ALLOWED',
    });
    expect(existsSync(join(base, 'new'))).toBe(false);
  });

  test('that is malformed, holds NUL, or is not a file is refused', async () => {
    const { allowed, store } = await setUp();
    for (const uri of [`file://${allowed}/a%00b`, 'file://otherhost/file', 'file://', `file://${allowed}/a%2fb`]) {
      await expect(read(store, uri)).rejects.toMatchObject({
        code: expect.stringMatching(/invalid_argument|permission_denied/),
      });
    }
    await expect(read(store, `file://${allowed}/sub`)).rejects.toMatchObject({ reason: 'URI_INVALID' });
  });

  test('of a folder whose link leads back up is listed once', async () => {
    const { allowed, store } = await setUp();
    symlinkSync('..', join(allowed, 'sub/up'));
    writeFileSync(join(allowed, 'sub/file'), 'x');
    const entries = await Array.fromAsync(store.listUri(`file://${allowed}`));
    expect(entries.map((entry) => entry.path)).toEqual(['file', 'sub/file']);
  });

  test('of a link in a collected folder that leads out stops the collection', async () => {
    const { base, allowed, store, root } = await setUp();
    symlinkSync(join(base, 'secret'), join(allowed, 'link'));
    await expect(collectFolder(store, allowed, 'model', {})).rejects.toMatchObject({ reason: 'URI_NOT_ALLOWED' });
    expect(filesBelow(root)).toEqual([]);
  });
});
