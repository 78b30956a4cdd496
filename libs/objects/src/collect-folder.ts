import { fileURLToPath, pathToFileURL } from 'node:url';
import type { Digest } from './digest.ts';
import { createFileUris } from './file-uris.ts';
import type { Manifest, ManifestFile } from './manifest.ts';
import type { ObjectStore } from './object-store.ts';

export type CollectOptions = {
  signal?: AbortSignal | undefined;
  /** Nobody will write to the folder's files again: see BlobSource. */
  immutable?: true;
  /** Called with the bytes taken from all files so far. */
  onProgress?: ((bytes: number) => void) | undefined;
};

/**
 * Stores every file of a folder and a manifest of them. A symbolic link that leads out of the folder is refused, before anything is stored.
 * Nothing refers to the blobs until the manifest's digest is recorded somewhere, so a failure in between leaves nothing visible.
 */
export async function collectFolder(
  store: ObjectStore,
  folder: string,
  kind: Manifest['kind'],
  metadata: Record<string, string>,
  o: CollectOptions = {},
): Promise<{ manifest: Manifest; digest: Digest }> {
  const reader = createFileUris([folder]);
  const entries = await Array.fromAsync(reader.listUri(pathToFileURL(folder).href, o));
  const files: ManifestFile[] = [];
  let before = 0;
  for (const { uri, path } of entries) {
    const source = o.immutable ? { path: fileURLToPath(uri), immutable: o.immutable } : reader.readUri(uri, o);
    const onProgress = (bytes: number) => o.onProgress?.(before + bytes);
    const blob = await store.putBlob(source, { signal: o.signal, onProgress });
    before += blob.sizeBytes;
    files.push({ path, ...blob });
  }
  const manifest: Manifest = { kind, files, metadata };
  return { manifest, digest: await store.putManifest(manifest, o) };
}
