import { createHash } from 'node:crypto';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { dirname, join, normalize } from 'node:path';
import { Failure } from '@medmesh/errors';
import type { model } from '@medmesh/proto';

/** Writes streamed chunks to a file, checks size and digest, and only then gives it its name. */
export async function downloadFile(
  dir: string,
  file: model.ArtifactFile,
  chunks: AsyncIterable<{ chunk: Uint8Array }>,
): Promise<string> {
  const path = normalize(file.path);
  if (path.startsWith('..') || path.startsWith('/'))
    throw new Failure('data_loss', 'a file of the artifact lies outside its folder', { reason: 'MANIFEST_INVALID' });
  const target = join(dir, path);
  const partial = `${target}.partial`;
  await mkdir(dirname(target), { recursive: true });
  const hash = createHash('sha256');
  try {
    const handle = await open(partial, 'w');
    try {
      for await (const { chunk } of chunks) {
        hash.update(chunk);
        await handle.write(chunk);
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
    const digest = `sha256:${hash.digest('hex')}`;
    if (digest !== file.digest)
      throw new Failure('data_loss', `${file.path} arrived with digest ${digest} instead of ${file.digest}`, {
        reason: 'ARTIFACT_CORRUPT',
      });
    await rename(partial, target);
  } catch (error) {
    await rm(partial, { force: true });
    throw error;
  }
  return target;
}
