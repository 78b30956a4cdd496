import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { tempDir } from '@medmesh/testkit';
import { expect, test } from 'vitest';
import { exportFiles, openObjectStore } from './index.ts';

/** A store with blobs `a`, `b` and `c`, and a folder that may be written to, in which `b` is there already. */
async function setUp() {
  const folder = tempDir('exported');
  const store = await openObjectStore({ url: `file://${tempDir('store')}`, uriRoots: [folder] });
  const files = await Promise.all(
    ['a', 'b', 'c'].map(async (path) => ({
      path: `in/${path}`,
      ...(await store.putBlob(Buffer.from(path.repeat(10)))),
    })),
  );
  mkdirSync(join(folder, 'in'));
  writeFileSync(join(folder, 'in/b'), 'before');
  const at = (name: string): string => join(folder, 'in', name);
  return { store, files, folder, at, base: pathToFileURL(folder).href };
}

test('an export writes every file and tells how far it is', async () => {
  const { store, files, base, at } = await setUp();
  const seen: number[] = [];
  await exportFiles(store, files, base, { onProgress: (bytes) => seen.push(bytes) });
  for (const name of ['a', 'b', 'c']) expect(readFileSync(at(name), 'utf8')).toBe(name.repeat(10));
  expect(seen).toEqual([10, 20, 30]);
});

test.each([10, 20, 30])(
  'an export that is cancelled after %i bytes removes the files it made, and no other',
  async (bytes) => {
    const { store, files, base, at } = await setUp();
    const stop = new AbortController();
    const reason = new Error('enough');
    const onProgress = (done: number): void => {
      if (done === bytes) stop.abort(reason);
    };
    await expect(exportFiles(store, files, base, { signal: stop.signal, onProgress })).rejects.toBe(reason);
    expect([existsSync(at('a')), existsSync(at('b')), existsSync(at('c'))]).toEqual([false, true, false]);
  },
);

test('an export of a blob that is not there fails with that, and leaves no file', async () => {
  const { store, files, base, at } = await setUp();
  await store.deleteBlob(files[2]!.digest);
  await expect(exportFiles(store, files, base)).rejects.toMatchObject({ reason: 'BLOB_NOT_FOUND' });
  expect([existsSync(at('a')), existsSync(at('c'))]).toEqual([false, false]);
});

test('removing a file takes the link and not what it leads to, and nothing outside the roots', async () => {
  const { store, folder, base, at } = await setUp();
  const outside = join(tempDir('outside'), 'file');
  writeFileSync(outside, 'x');
  symlinkSync(outside, at('link'));
  await store.removeUri(`${base}/in/link`);
  expect([existsSync(at('link')), existsSync(outside)]).toEqual([false, true]);
  await store.removeUri(`${base}/in/link`);
  await store.removeUri(`${base}/none/at/all`);
  symlinkSync(join(outside, '..'), join(folder, 'out'));
  for (const uri of [pathToFileURL(outside).href, `${base}/out/file`, `${base}/../x`]) {
    await expect(store.removeUri(uri)).rejects.toMatchObject({ reason: 'URI_NOT_ALLOWED' });
  }
  expect(existsSync(outside)).toBe(true);
});
