import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Failure } from '@medmesh/errors';
import { checkPath } from '@medmesh/objects';
import type { ModelSource, SourceFile } from './sources/model-source.ts';

async function sizeOf(path: string): Promise<number> {
  return stat(path).then(
    ({ size }) => size,
    () => 0,
  );
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) hash.update(chunk);
  return hash.digest('hex');
}

/** Fetches one file, going on where an earlier attempt broke off; its size and published digest must be right. */
async function stageFile(source: ModelSource, file: SourceFile, dir: string, onBytes: (count: number) => void, signal: AbortSignal): Promise<void> {
  const target = join(dir, file.path);
  const partial = `${target}.partial`;
  if ((await sizeOf(target)) === file.sizeBytes && (file.sizeBytes > 0 || (await stat(target).catch(() => undefined)) !== undefined)) {
    onBytes(file.sizeBytes);
    return;
  }
  await mkdir(dirname(target), { recursive: true });
  const have = Math.min(await sizeOf(partial), file.sizeBytes);
  onBytes(have);
  const handle = await open(partial, 'a');
  let size = have;
  try {
    await handle.truncate(have);
    if (have < file.sizeBytes) {
      for await (const chunk of source.read(file.path, have, signal)) {
        size += chunk.length;
        if (size > file.sizeBytes) break;
        await handle.write(chunk);
        onBytes(chunk.length);
      }
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
  const wrong = async (what: string) => {
    await rm(partial, { force: true });
    return new Failure('data_loss', `${file.path} ${what}; the import is worth trying again`, { reason: 'DOWNLOAD_CORRUPT' });
  };
  if (size !== file.sizeBytes) throw await wrong(`arrived with ${size} bytes instead of ${file.sizeBytes}`);
  if (file.sha256 !== undefined && (await sha256Of(partial)) !== file.sha256) throw await wrong('arrived with another digest than the hub publishes');
  await rename(partial, target);
}

/** Fetches every file of a model into `dir`. What is complete there already is kept, so a second call goes on after a crash. */
export async function stageFiles(source: ModelSource, files: readonly SourceFile[], dir: string, report: (done: number, total: number) => void, signal: AbortSignal): Promise<void> {
  const total = files.reduce((sum, file) => sum + file.sizeBytes, 0);
  let done = 0;
  for (const file of files) {
    checkPath(file.path);
    await stageFile(
      source,
      file,
      dir,
      (count) => {
        done += count;
        report(done, total);
      },
      signal,
    );
  }
}
