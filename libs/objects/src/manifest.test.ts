import { Failure } from '@medmesh/errors';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { blobKey, digestOfBytes } from './digest.ts';
import { checkManifest, checkPath, decodeManifest, encodeManifest, type Manifest } from './manifest.ts';
import { partsOf, piecesOf, untilAborted } from './source.ts';

const failureOf = (act: () => unknown): Failure => {
  try {
    act();
  } catch (error) {
    if (error instanceof Failure) return error;
    throw error;
  }
  throw new Error('did not fail');
};

const digest = digestOfBytes(Buffer.from('content'));
const manifest = (files: Manifest['files'], metadata: Record<string, string> = {}): Manifest => ({
  kind: 'model',
  files,
  metadata,
});

test('equal manifests have equal bytes, whatever the order of their parts', () => {
  const a = manifest(
    [
      { path: 'b', digest, sizeBytes: 7 },
      { path: 'a', digest, sizeBytes: 7 },
    ],
    { y: '1', x: '2' },
  );
  const b: Manifest = {
    metadata: { x: '2', y: '1' },
    files: [
      { sizeBytes: 7, digest, path: 'a' },
      { sizeBytes: 7, path: 'b', digest },
    ],
    kind: 'model',
  };
  expect(encodeManifest(a)).toEqual(encodeManifest(b));
  expect(Buffer.from(encodeManifest(a)).toString()).toBe(
    `{"files":[{"digest":"${digest}","path":"a","sizeBytes":7},{"digest":"${digest}","path":"b","sizeBytes":7}],"kind":"model","metadata":{"x":"2","y":"1"}}`,
  );
  expect(decodeManifest(digest, encodeManifest(a))).toEqual(checkManifest(b));
});

test('a path that could leave its folder is refused', () => {
  const hostile = [
    '',
    '../x',
    'a/../../x',
    '/etc/passwd',
    'a//b',
    './a',
    'a/.',
    'a/',
    'a\0b',
    'a\nb',
    '..\\x',
    'x'.repeat(256),
    `${'a/'.repeat(600)}a`,
    '..',
  ];
  for (const path of hostile) {
    expect(failureOf(() => checkPath(path))).toMatchObject({ code: 'invalid_argument', reason: 'MANIFEST_INVALID' });
    expect(failureOf(() => encodeManifest(manifest([{ path, digest, sizeBytes: 1 }]))).reason).toBe('MANIFEST_INVALID');
  }
  for (const path of ['model.safetensors', 'a/b/c', '.gitattributes', '..a', 'ä b']) expect(checkPath(path)).toBe(path);
});

test('a manifest with a path twice, a file that is also a folder, or a wrong type is refused', () => {
  const file = { path: 'a', digest, sizeBytes: 1 };
  const refused: unknown[] = [
    null,
    'text',
    { ...manifest([]), kind: 'picture' },
    { ...manifest([]), extra: 1 },
    { ...manifest([]), files: 'none' },
    { ...manifest([]), metadata: { a: 1 } },
    manifest([file, file]),
    manifest([file, { ...file, path: 'a/b' }]),
    manifest([{ ...file, sizeBytes: -1 }]),
    manifest([{ ...file, sizeBytes: 1.5 }]),
    { ...manifest([]), files: [{ path: 'a', sizeBytes: 1 }] },
  ];
  for (const value of refused)
    expect(failureOf(() => checkManifest(value))).toMatchObject({ reason: 'MANIFEST_INVALID' });
  expect(failureOf(() => checkManifest(manifest([{ ...file, digest: 'sha256:../x' }])))).toMatchObject({
    reason: 'DIGEST_INVALID',
  });
});

test('bytes that are no manifest are data loss of the blob that should hold one', () => {
  expect(failureOf(() => decodeManifest(digest, Buffer.from('{"kind":')))).toMatchObject({ code: 'data_loss' });
  expect(failureOf(() => decodeManifest(digest, Buffer.from('{}'))).message).toContain(digest);
});

test('a digest that is not one never becomes a key', () => {
  expect(blobKey(digest)).toMatch(/^blobs\/sha256\/[0-9a-f]{2}\/[0-9a-f]{64}$/);
  for (const text of [
    '',
    'sha256:',
    `sha256:${'A'.repeat(64)}`,
    `md5:${'a'.repeat(64)}`,
    `sha256:${'a'.repeat(64)}/../x`,
    `sha256:${'a'.repeat(64)}\n`,
  ]) {
    expect(failureOf(() => blobKey(text))).toMatchObject({ code: 'invalid_argument', reason: 'DIGEST_INVALID' });
  }
});

test('parts hold the bytes of the pieces in order, each of its size but the last', async () => {
  const sizes = fc.array(fc.nat({ max: 40 }), { maxLength: 20 });
  await fc.assert(
    fc.asyncProperty(sizes, fc.integer({ min: 1, max: 30 }), async (lengths, partBytes) => {
      const whole = Buffer.from(Array.from({ length: lengths.reduce((a, b) => a + b, 0) }, (_, i) => i % 251));
      async function* pieces(): AsyncGenerator<Uint8Array> {
        let at = 0;
        for (const length of lengths) {
          yield whole.subarray(at, at + length);
          at += length;
        }
      }
      const parts = await Array.fromAsync(partsOf(pieces(), (index) => partBytes + index));
      expect(Buffer.concat(parts)).toEqual(whole);
      expect(parts.slice(0, -1).map((part) => part.length)).toEqual(
        parts.slice(0, -1).map((_, index) => partBytes + index),
      );
    }),
  );
});

test('a source that hangs is left as soon as the signal aborts', async () => {
  const stop = new AbortController();
  async function* hanging(): AsyncGenerator<Uint8Array> {
    yield Buffer.from('first');
    await new Promise(() => undefined);
  }
  const seen: string[] = [];
  const reading = (async () => {
    for await (const piece of piecesOf(hanging(), stop.signal)) {
      seen.push(Buffer.from(piece).toString());
      setTimeout(() => stop.abort(new Failure('cancelled', 'enough')), 20);
    }
  })();
  await expect(reading).rejects.toMatchObject({ code: 'cancelled' });
  expect(seen).toEqual(['first']);
});

test('a source that is left early cleans up', async () => {
  let cleaned = false;
  async function* source(): AsyncGenerator<number> {
    try {
      yield 1;
      yield 2;
    } finally {
      cleaned = true;
    }
  }
  for await (const _ of untilAborted(source(), new AbortController().signal)) break;
  expect(cleaned).toBe(true);
});
