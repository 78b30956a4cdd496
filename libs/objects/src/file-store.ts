import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { chmod, type FileHandle, link, lstat, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Failure } from '@medmesh/errors';
import { blobKey, blobNotFound, checkDigest, checkExpected, corrupt, digestOf, newHash } from './digest.ts';
import type { BlobHome, PutOptions, ReadOptions, StoredBlob, WaitOptions } from './object-store.ts';
import { type BlobSource, checkRange, fileRange, piecesOf } from './source.ts';

/** What a process left behind in the middle of a write is removed after this. */
const abandonedMs = 24 * 60 * 60 * 1000;

const isMissing = (error: unknown): boolean =>
  error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ENOTDIR');

/** Blobs as files below `root`, in the layout of an S3 bucket: `blobs/sha256/ab/abcd…`. A blob gets its name only when it is complete and on disk. */
export async function openFileStore(root: string): Promise<BlobHome> {
  const incoming = join(root, 'tmp');
  await mkdir(join(root, 'blobs/sha256'), { recursive: true });
  await mkdir(incoming, { recursive: true });
  await removeAbandoned(incoming);

  const pathOf = (digest: string): string => join(root, blobKey(digest));

  async function putBlob(source: BlobSource, o: PutOptions = {}): Promise<StoredBlob> {
    if (o.expectedDigest !== undefined) checkDigest(o.expectedDigest);
    const temporary = join(incoming, randomUUID());
    try {
      const hash = newHash();
      let sizeBytes = 0;
      const onPiece = (piece: Uint8Array) => {
        hash.update(piece);
        sizeBytes += piece.length;
        o.onProgress?.(sizeBytes);
      };
      if (await linkImmutable(source, temporary)) {
        for await (const piece of fileRange(temporary, 0, undefined, o.signal)) onPiece(piece);
        await syncFile(temporary);
      } else {
        await writeSynced(temporary, 0o444, piecesOf(source, o.signal), onPiece);
      }
      const digest = digestOf(hash);
      checkExpected(o.expectedDigest, digest);
      // Also over a blob that is there: if that one is damaged, storing the content again heals it.
      await renameSynced(temporary, pathOf(digest));
      return { digest, sizeBytes };
    } catch (error) {
      await rm(temporary, { force: true });
      throw error;
    }
  }

  async function* readBlob(digest: string, o: ReadOptions = {}): AsyncGenerator<Uint8Array> {
    checkRange(o);
    const whole = (o.offset ?? 0) === 0 && o.length === undefined;
    const hash = newHash();
    try {
      for await (const piece of fileRange(pathOf(digest), o.offset ?? 0, o.length, o.signal)) {
        if (whole) hash.update(piece);
        yield piece;
      }
    } catch (error) {
      if (isMissing(error)) throw blobNotFound(digest);
      throw error;
    }
    if (!whole) return;
    const seen = digestOf(hash);
    if (seen !== digest) throw corrupt(digest, seen);
  }

  async function sizeOf(digest: string, o: WaitOptions): Promise<number | undefined> {
    o.signal?.throwIfAborted();
    try {
      return (await stat(pathOf(digest))).size;
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  }

  async function deleteBlob(digest: string, o: WaitOptions = {}): Promise<void> {
    o.signal?.throwIfAborted();
    await rm(pathOf(digest), { force: true });
  }

  return {
    url: `file://${root}`,
    putBlob,
    readBlob,
    deleteBlob,
    sizeOf,
    blobPath: pathOf,
    presignPut: () =>
      Promise.reject(
        new Failure('failed_precondition', 'a file store takes no uploads by URL; send the content through the API', {
          reason: 'PRESIGN_NOT_SUPPORTED',
        }),
      ),
  };
}

/** Gives an immutable file a second name, and takes everybody's right to write from it. False where it has to be copied. */
async function linkImmutable(source: BlobSource, to: string): Promise<boolean> {
  if (!('path' in source) || source.immutable !== true || !(await lstat(source.path)).isFile()) return false;
  try {
    await link(source.path, to);
  } catch {
    return false; // another file system, or one without links
  }
  await chmod(to, 0o444);
  return true;
}

/** Of a file that may be read-only, or a folder. */
async function syncFile(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Writes pieces to a new file and syncs it to disk. Returns its size. */
export async function writeSynced(
  path: string,
  mode: number,
  pieces: AsyncIterable<Uint8Array>,
  onPiece: (piece: Uint8Array, written: number) => void,
): Promise<number> {
  const file = await open(path, constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY | constants.O_NOFOLLOW, mode);
  try {
    let written = 0;
    for await (const piece of pieces) {
      written += piece.length;
      onPiece(piece, written);
      await writeAll(file, piece);
    }
    await file.sync();
    return written;
  } finally {
    await file.close();
  }
}

async function writeAll(file: FileHandle, piece: Uint8Array): Promise<void> {
  for (let at = 0; at < piece.length; ) at += (await file.write(piece, at)).bytesWritten;
}

/** Gives a file its final name, and makes the name itself survive a power cut. */
export async function renameSynced(from: string, to: string): Promise<void> {
  await mkdir(dirname(to), { recursive: true });
  await rename(from, to);
  await syncFile(dirname(to));
}

async function removeAbandoned(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const path = join(folder, name);
    const info = await stat(path).catch(() => undefined);
    if (info !== undefined && Date.now() - info.mtimeMs > abandonedMs) await rm(path, { force: true });
  }
}
