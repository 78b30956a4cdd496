import { pathToFileURL } from 'node:url';
import type { Digest } from './digest.ts';
import { createFileUris } from './file-uris.ts';
import type { Manifest, ManifestFile } from './manifest.ts';
import type { ObjectStore } from './object-store.ts';

/**
 * Stores every file of a folder and a manifest of them. A symbolic link that leads out of the folder is refused, before anything is stored.
 * Nothing refers to the blobs until the manifest's digest is recorded somewhere, so a failure in between leaves nothing visible.
 */
export async function collectFolder(
  store: ObjectStore,
  folder: string,
  kind: Manifest['kind'],
  metadata: Record<string, string>,
  o: { signal?: AbortSignal } = {},
): Promise<{ manifest: Manifest; digest: Digest }> {
  const reader = createFileUris([folder]);
  const entries = await Array.fromAsync(reader.listUri(pathToFileURL(folder).href, o));
  const files: ManifestFile[] = [];
  for (const { uri, path } of entries) {
    const blob = await store.putBlob(reader.readUri(uri, o), { signal: o.signal });
    files.push({ path, ...blob });
  }
  const manifest: Manifest = { kind, files, metadata };
  return { manifest, digest: await store.putManifest(manifest, o) };
}
