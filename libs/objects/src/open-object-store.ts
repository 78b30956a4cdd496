import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Failure } from '@medmesh/errors';
import { openFileStore } from './file-store.ts';
import { createFileUris } from './file-uris.ts';
import { createObjectStore, type ObjectStore } from './object-store.ts';
import { openS3Bucket } from './s3-client.ts';
import { openS3Store } from './s3-store.ts';
import { createS3Uris } from './s3-uris.ts';

export type ObjectStoreOptions = {
  /** `file:///directory` or `s3://bucket?endpoint=http://host:port&region=…`. */
  readonly url: string;
  readonly accessKey?: string | undefined;
  readonly secretKey?: string | undefined;
  /**
   * What `readUri`, `listUri` and `writeUri` may touch besides the store's own `uploads/` and `exports/`: absolute folders, `file:///folder`s and
   * `s3://bucket/prefix`es on the store's endpoint. Whoever may call the API reads and writes there with this process's rights.
   */
  readonly uriRoots?: readonly string[] | undefined;
  readonly signal?: AbortSignal | undefined;
  /** How long to wait for a store that is away. 0 asks once. Default: a minute. */
  readonly patienceMs?: number | undefined;
};

/** Areas of the store for content on its way in and out. Never `blobs/`: a URI must not be a way around digests. */
const ownAreas = ['uploads', 'exports'];

/**
 * Opens the store behind a URL and makes its folder or bucket if there is none.
 * @throws Failure `invalid_argument` STORE_URL_INVALID, `unavailable` STORE_UNAVAILABLE, `permission_denied` STORE_CREDENTIALS_REFUSED.
 */
export async function openObjectStore(o: ObjectStoreOptions): Promise<ObjectStore> {
  const folders: string[] = [];
  const buckets: string[] = [];
  for (const root of o.uriRoots ?? [])
    (root.startsWith('s3://') ? buckets : folders).push(root.startsWith('file://') ? fileURLToPath(root) : root);

  if (o.url.startsWith('file:///')) {
    const root = fileURLToPath(o.url).replace(/(?<=.)\/+$/, '');
    const areas = ownAreas.map((area) => join(root, area));
    try {
      const home = await openFileStore(root);
      for (const area of areas) await mkdir(area, { recursive: true });
      return createObjectStore(home, { file: createFileUris([...areas, ...folders]) });
    } catch (error) {
      throw cannotOpen(root, error);
    }
  }
  if (!/^s3:\/\/[a-z0-9]/.test(o.url)) {
    throw new Failure(
      'invalid_argument',
      'the object store must be file:///directory or s3://bucket?endpoint=http://host:port',
      {
        reason: 'STORE_URL_INVALID',
      },
    );
  }
  const s3 = openS3Bucket(o);
  const home = await openS3Store(s3, {
    signal: o.signal,
    ...(o.patienceMs === undefined ? {} : { patienceMs: o.patienceMs }),
  });
  const own = ownAreas.map((area) => `${s3.url}/${area}/`);
  return createObjectStore(home, { file: createFileUris(folders), s3: createS3Uris(s3, [...own, ...buckets]) });
}

/** The folder of a file store is configuration: its path may be told. */
function cannotOpen(root: string, error: unknown): Failure {
  const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown error';
  return new Failure(
    'failed_precondition',
    `cannot use ${root} as object store (${code}); make it a folder that this process may write to`,
    {
      reason: 'STORE_FOLDER_UNUSABLE',
      cause: error,
    },
  );
}
