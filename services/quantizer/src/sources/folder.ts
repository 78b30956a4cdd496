import type { ObjectStore } from '@medmesh/objects';
import type { ModelSource, SourceFile } from './model-source.ts';

/** A `file://` folder or `s3://` prefix, within the roots that the store allows. */
export async function openFolder(store: ObjectStore, uri: string, signal: AbortSignal): Promise<ModelSource> {
  const uris = new Map<string, string>();
  const files: SourceFile[] = [];
  for await (const entry of store.listUri(uri, { signal })) {
    uris.set(entry.path, entry.uri);
    files.push({ path: entry.path, sizeBytes: entry.sizeBytes });
  }
  return {
    revision: '',
    files,
    read: (path, offset, readSignal) => store.readUri(uris.get(path) ?? '', { offset, signal: readSignal }),
  };
}
