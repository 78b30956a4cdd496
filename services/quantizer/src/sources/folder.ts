import { Failure } from '@medmesh/errors';
import type { ObjectStore } from '@medmesh/objects';
import { maxListedFiles } from './hub-listing.ts';
import type { ModelSource, SourceFile } from './model-source.ts';

/** A `file://` folder or `s3://` prefix, within the roots that the store allows. */
export async function openFolder(store: ObjectStore, uri: string, signal: AbortSignal): Promise<ModelSource> {
  const uris = new Map<string, string>();
  const files: SourceFile[] = [];
  for await (const entry of store.listUri(uri, { signal })) {
    if (files.length === maxListedFiles) {
      throw new Failure(
        'invalid_argument',
        `the folder has more than ${maxListedFiles} files; name the model’s own folder`,
        { reason: 'MODEL_FILES_INVALID' },
      );
    }
    uris.set(entry.path, entry.uri);
    files.push({ path: entry.path, sizeBytes: entry.sizeBytes });
  }
  return {
    revision: '',
    files,
    read: (path, offset, readSignal) => store.readUri(uris.get(path)!, { offset, signal: readSignal }),
  };
}
