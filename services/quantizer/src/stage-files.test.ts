import { createHash } from 'node:crypto';
import { appendFileSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tempDir } from '@medmesh/testkit';
import { expect, test } from 'vitest';
import type { ModelSource, SourceFile } from './sources/model-source.ts';
import { stageFiles } from './stage-files.ts';

const content = Buffer.from(Array.from({ length: 100_000 }, (_, i) => i % 251));
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
const weights: SourceFile = {
  path: 'model.safetensors',
  sizeBytes: content.length,
  digest: { kind: 'sha256', hex: sha256(content) },
};
const live = new AbortController().signal;

/** Serves `bytes` in pieces of 1000 and records where it was asked to begin. */
function sourceOf(bytes: Uint8Array, o: { breakAfter?: number } = {}): ModelSource & { offsets: number[] } {
  const offsets: number[] = [];
  return {
    revision: '',
    files: [],
    offsets,
    async *read(_, offset) {
      offsets.push(offset);
      for (let at = offset; at < bytes.length; at += 1000) {
        if (o.breakAfter !== undefined && at - offset >= o.breakAfter) throw new Error('broken');
        yield bytes.subarray(at, at + 1000);
      }
    },
  };
}

test('a second call goes on where the first broke off, and counts what is there as done', async () => {
  const dir = tempDir('stage');
  await expect(
    stageFiles(sourceOf(content, { breakAfter: 30_000 }), [weights], dir, () => undefined, live),
  ).rejects.toThrow('broken');
  expect(readdirSync(dir)).toEqual(['model.safetensors.partial']);
  const source = sourceOf(content);
  const reports: number[] = [];
  await stageFiles(source, [weights], dir, (done) => reports.push(done), live);
  expect(source.offsets).toEqual([30_000]);
  expect(readFileSync(join(dir, 'model.safetensors'))).toEqual(content);
  expect([reports[0], reports.at(-1)]).toEqual([30_000, content.length]);
});

test('what is complete is not fetched again', async () => {
  const dir = tempDir('stage');
  await stageFiles(sourceOf(content), [weights], dir, () => undefined, live);
  const source = sourceOf(content);
  await stageFiles(source, [weights], dir, () => undefined, live);
  expect(source.offsets).toEqual([]);
});

test('a partial file that was damaged meanwhile is found out by the digest of the whole', async () => {
  const dir = tempDir('stage');
  writeFileSync(join(dir, 'model.safetensors.partial'), Buffer.alloc(5000, 7));
  await expect(stageFiles(sourceOf(content), [weights], dir, () => undefined, live)).rejects.toMatchObject({
    reason: 'DOWNLOAD_CORRUPT',
  });
  expect(readdirSync(dir)).toEqual([]);
  await stageFiles(sourceOf(content), [weights], dir, () => undefined, live);
});

test('a partial file that is too long is cut to the file’s size', async () => {
  const dir = tempDir('stage');
  const partial = join(dir, 'model.safetensors.partial');
  writeFileSync(partial, content);
  appendFileSync(partial, 'tail');
  await stageFiles(sourceOf(content), [weights], dir, () => undefined, live);
  expect(readFileSync(join(dir, 'model.safetensors'))).toEqual(content);
});

test.each([
  ['one byte less', content.subarray(0, -1), /99999 bytes instead of 100000/],
  ['one byte more', Buffer.concat([content, Buffer.from('x')]), /more than the 100000 bytes/],
  ['another byte', Buffer.concat([content.subarray(0, -1), Buffer.from('x')]), /another digest/],
])('%s than was published is refused as corrupt and nothing of it stays', async (_, bytes, message) => {
  const dir = tempDir('stage');
  await expect(stageFiles(sourceOf(bytes), [weights], dir, () => undefined, live)).rejects.toMatchObject({
    code: 'data_loss',
    reason: 'DOWNLOAD_CORRUPT',
    message: expect.stringMatching(message) as string,
  });
  expect(readdirSync(dir)).toEqual([]);
});

test('a small file is verified by the name that git gives it', async () => {
  const dir = tempDir('stage');
  // From `printf '{"a":1}' | git hash-object --stdin`.
  const file: SourceFile = {
    path: 'config.json',
    sizeBytes: 7,
    digest: { kind: 'git-sha1', hex: 'daa5053ecf5f9a37b2de733d0751cc1ab53ac010' },
  };
  await stageFiles(sourceOf(Buffer.from('{"a":1}')), [file], dir, () => undefined, live);
  await expect(
    stageFiles(sourceOf(Buffer.from('{"a":2}')), [file], tempDir('stage'), () => undefined, live),
  ).rejects.toMatchObject({
    reason: 'DOWNLOAD_CORRUPT',
  });
});

test('an empty file needs nothing from the source', async () => {
  const dir = tempDir('stage');
  const source = sourceOf(content);
  await stageFiles(source, [{ path: 'LICENSE', sizeBytes: 0 }], dir, () => undefined, live);
  expect(source.offsets).toEqual([]);
  expect(statSync(join(dir, 'LICENSE')).size).toBe(0);
});

test('a model that the disk cannot hold is refused before anything is fetched', async () => {
  const dir = tempDir('stage');
  const source = sourceOf(content);
  const huge = { ...weights, sizeBytes: 2 ** 52 };
  await expect(stageFiles(source, [huge], dir, () => undefined, live)).rejects.toMatchObject({
    code: 'resource_exhausted',
    reason: 'DISK_FULL',
  });
  expect(source.offsets).toEqual([]);
});

test('an abort ends the download for its own reason and keeps what is there', async () => {
  const dir = tempDir('stage');
  const abort = new AbortController();
  const reason = new Error('enough');
  const staged = stageFiles(
    sourceOf(content),
    [weights],
    dir,
    (done) => done >= 50_000 && abort.abort(reason),
    abort.signal,
  );
  await expect(staged).rejects.toBe(reason);
  expect(existsSync(join(dir, 'model.safetensors'))).toBe(false);
  expect(statSync(join(dir, 'model.safetensors.partial')).size).toBe(50_000);
});
