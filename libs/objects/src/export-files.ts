import { Failure } from '@medmesh/errors';
import type { ManifestFile } from './manifest.ts';
import type { ObjectStore } from './object-store.ts';

export type ExportOptions = {
  signal?: AbortSignal | undefined;
  /** Called with the bytes written so far, of all files. */
  onProgress?: ((bytes: number) => void) | undefined;
};

/** A signal that ended the export must not end the cleaning up after it. */
const cleaningMs = 30_000;

/**
 * Copies blobs to files below `base`, in the order given. Each appears complete or not at all, and if any of them cannot
 * be written, or the signal aborts, those that this call made are removed again. A file that was there before is replaced,
 * and stays.
 */
export async function exportFiles(
  store: Pick<ObjectStore, 'readBlob' | 'writeUri' | 'uriSize' | 'removeUri'>,
  files: readonly ManifestFile[],
  base: string,
  { signal, onProgress }: ExportOptions = {},
): Promise<void> {
  const made: string[] = [];
  let before = 0;
  try {
    for (const { path, digest, sizeBytes } of files) {
      const uri = `${base}/${path}`;
      const start = before;
      const replaces = await exists(store, uri, signal);
      await store.writeUri(uri, store.readBlob(digest, signal === undefined ? {} : { signal }), {
        expectedDigest: digest,
        signal,
        onProgress: (bytes) => onProgress?.(start + bytes),
      });
      if (!replaces) made.push(uri);
      before += sizeBytes;
    }
    signal?.throwIfAborted();
  } catch (error) {
    for (const uri of made) {
      // What cannot be removed now would hide why the export failed.
      await store.removeUri(uri, { signal: AbortSignal.timeout(cleaningMs) }).catch(() => undefined);
    }
    throw error;
  }
}

async function exists(
  store: Pick<ObjectStore, 'uriSize'>,
  uri: string,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  try {
    await store.uriSize(uri, { signal });
    return true;
  } catch (error) {
    if (error instanceof Failure && error.reason === 'URI_NOT_FOUND') return false;
    throw error;
  }
}
