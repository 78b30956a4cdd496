import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, rename, rm, stat, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { Failure } from '@medmesh/errors';
import type { ModelSource, PublishedDigest, SourceFile } from './sources/model-source.ts';

/** The file's size; undefined if there is none. */
const sizeOf = (path: string): Promise<number | undefined> =>
  stat(path).then(
    ({ size }) => size,
    () => undefined,
  );

function hashFor({ kind }: PublishedDigest, sizeBytes: number): Hash {
  if (kind !== 'git-sha1') return createHash('sha256');
  return createHash('sha1').update(`blob ${sizeBytes}\0`);
}

/** Fetches one file, going on where an earlier attempt broke off; its size and published digest must be right. */
async function stageFile(
  source: ModelSource,
  file: SourceFile,
  dir: string,
  onBytes: (count: number) => void,
  signal: AbortSignal,
): Promise<void> {
  const target = join(dir, file.path);
  const partial = `${target}.partial`;
  // What bears its name was complete and verified.
  if ((await sizeOf(target)) !== undefined) {
    onBytes(file.sizeBytes);
    return;
  }
  const hash = file.digest && hashFor(file.digest, file.sizeBytes);
  let size = Math.min((await sizeOf(partial)) ?? 0, file.sizeBytes);
  if (size > 0 && hash !== undefined) {
    for await (const chunk of createReadStream(partial, { end: size - 1, signal }) as AsyncIterable<Buffer>)
      hash.update(chunk);
  }
  onBytes(size);
  const handle = await open(partial, 'a');
  try {
    await handle.truncate(size);
    if (size < file.sizeBytes) {
      for await (const chunk of source.read(file.path, size, signal)) {
        signal.throwIfAborted();
        size += chunk.length;
        if (size > file.sizeBytes) break;
        hash?.update(chunk);
        await handle.writeFile(chunk);
        onBytes(chunk.length);
      }
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
  const corrupt = async (what: string): Promise<Failure> => {
    await rm(partial, { force: true });
    return new Failure('data_loss', `${file.path} ${what}; import again`, { reason: 'DOWNLOAD_CORRUPT' });
  };
  if (size > file.sizeBytes) throw await corrupt(`arrived with more than the ${file.sizeBytes} bytes it should have`);
  if (size < file.sizeBytes) throw await corrupt(`arrived with ${size} bytes instead of ${file.sizeBytes}`);
  if (hash !== undefined && hash.digest('hex') !== file.digest?.hex) {
    throw await corrupt('arrived with another digest than the hub publishes');
  }
  await rename(partial, target);
}

async function checkSpace(dir: string, neededBytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(dir);
  if (bavail * bsize >= neededBytes) return;
  throw new Failure(
    'resource_exhausted',
    `the model has ${neededBytes} bytes, the disk of STAGING_DIR only ${bavail * bsize} free ones; make room`,
    { reason: 'DISK_FULL' },
  );
}

/**
 * Fetches every file of a model into `dir`. What is there already is kept, so a second call goes on where the first broke off.
 * @throws Failure `data_loss` DOWNLOAD_CORRUPT, `resource_exhausted` DISK_FULL, and what the source throws.
 */
export async function stageFiles(
  source: ModelSource,
  files: readonly SourceFile[],
  dir: string,
  report: (done: number, total: number) => void,
  signal: AbortSignal,
): Promise<void> {
  await mkdir(dir, { recursive: true });
  const total = files.reduce((sum, file) => sum + file.sizeBytes, 0);
  let there = 0;
  for (const { path } of files)
    there += (await sizeOf(join(dir, path))) ?? (await sizeOf(join(dir, `${path}.partial`))) ?? 0;
  await checkSpace(dir, total - there);
  let done = 0;
  const onBytes = (count: number) => {
    done += count;
    report(done, total);
  };
  for (const file of files) await stageFile(source, file, dir, onBytes, signal);
}
