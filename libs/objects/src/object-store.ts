import { Failure } from '@medmesh/errors';
import { blobNotFound, type Digest } from './digest.ts';
import { decodeManifest, encodeManifest, largestManifestBytes, type Manifest } from './manifest.ts';
import type { BlobSource } from './source.ts';

export type StoredBlob = { digest: Digest; sizeBytes: number };

export type PutOptions = {
  /** Refuses other content: Failure `data_loss` DIGEST_MISMATCH. */
  expectedDigest?: string | undefined;
  signal?: AbortSignal | undefined;
  /** Called with the bytes taken from the source so far. */
  onProgress?: ((bytes: number) => void) | undefined;
};

export type ReadOptions = {
  /** First byte; 0 without it. */
  offset?: number;
  /** How many bytes; without it, to the end. */
  length?: number;
  signal?: AbortSignal | undefined;
};

export type WaitOptions = { signal?: AbortSignal | undefined };

/** A file or object outside the blobs. `path` is relative to the prefix that was listed. */
export type UriEntry = { uri: string; path: string; sizeBytes: number };

/**
 * Blobs by the digest of their content, manifests that name them, and a door to files and buckets outside.
 * Blobs are immutable: what can be read is complete and was verified when it was stored. While the store is away, methods wait and try again until
 * their signal aborts; without a signal, for a minute. Failures: `not_found` BLOB_NOT_FOUND, `unavailable` STORE_UNAVAILABLE,
 * `permission_denied` STORE_CREDENTIALS_REFUSED or URI_NOT_ALLOWED, `resource_exhausted` when space is out.
 */
export interface ObjectStore {
  /** Without credentials. */
  readonly url: string;
  putBlob: (source: BlobSource, o?: PutOptions) => Promise<StoredBlob>;
  /** Reading a whole blob verifies it: the stream ends with Failure `data_loss` ARTIFACT_CORRUPT if it is damaged. A range is not verified. */
  readBlob: (digest: string, o?: ReadOptions) => AsyncIterable<Uint8Array>;
  hasBlob: (digest: string, o?: WaitOptions) => Promise<boolean>;
  blobSize: (digest: string, o?: WaitOptions) => Promise<number>;
  /** Deletes a blob; one that is not there is deleted already. Who calls it knows that nothing refers to the blob any more. Copies in caches stay until they go. */
  deleteBlob: (digest: string, o?: WaitOptions) => Promise<void>;
  /** The file that holds a blob, where blobs are files. Read-only, and not verified. */
  blobPath?: (digest: string) => string;
  /** Stores a manifest whose blobs are all there; otherwise Failure `failed_precondition` BLOB_MISSING. */
  putManifest: (manifest: Manifest, o?: WaitOptions) => Promise<Digest>;
  getManifest: (digest: string, o?: WaitOptions) => Promise<Manifest>;
  /** A URL that one object can be sent to by HTTP PUT within `ttlSeconds`, and the URI to read it by. `key` names it within `uploads/`. Only s3. */
  presignPut: (key: string, ttlSeconds: number) => Promise<{ url: string; uri: string }>;
  /** The bytes behind a `file://` or `s3://` URI within the allowed roots. */
  readUri: (uri: string, o?: ReadOptions) => AsyncIterable<Uint8Array>;
  uriSize: (uri: string, o?: WaitOptions) => Promise<number>;
  /** The files below a folder or the objects below a prefix, sorted by path; a single file as itself. */
  listUri: (prefix: string, o?: WaitOptions) => AsyncIterable<UriEntry>;
  /** Writes a file or object within the allowed roots; it appears complete or not at all. */
  writeUri: (uri: string, source: BlobSource, o?: PutOptions) => Promise<{ sizeBytes: number }>;
  /** Removes a file or object within the allowed roots; one that is not there is removed already. */
  removeUri: (uri: string, o?: WaitOptions) => Promise<void>;
}

/** What a home of blobs does by itself; the rest of an ObjectStore is made of it. */
export type BlobHome = Pick<ObjectStore, 'url' | 'putBlob' | 'readBlob' | 'deleteBlob' | 'blobPath' | 'presignPut'> & {
  /** Undefined if there is no such blob. */
  sizeOf: (digest: string, o: WaitOptions) => Promise<number | undefined>;
};

/** Reads and writes the URIs of one scheme. */
export type UriHome = Pick<ObjectStore, 'readUri' | 'uriSize' | 'listUri' | 'writeUri' | 'removeUri'>;

/** How many blobs a manifest's check asks for at once. */
const checksInFlight = 16;

/** Puts a store together from a home of blobs and the schemes it can reach. */
export function createObjectStore(home: BlobHome, uris: { file: UriHome; s3?: UriHome | undefined }): ObjectStore {
  function reach(uri: string): UriHome {
    if (uri.startsWith('file://')) return uris.file;
    if (!uri.startsWith('s3://')) {
      throw new Failure(
        'invalid_argument',
        `${JSON.stringify(uri.slice(0, 80))} is not a URI to read or write; use file:///path or s3://bucket/key`,
        {
          reason: 'URI_INVALID',
        },
      );
    }
    if (uris.s3 !== undefined) return uris.s3;
    throw new Failure(
      'failed_precondition',
      'this process has no S3 store; configure OBJECT_STORE_URL=s3://… or use file:///path',
      {
        reason: 'STORE_NOT_CONFIGURED',
      },
    );
  }

  async function missing(manifest: Manifest, o: WaitOptions): Promise<string[]> {
    const lost: string[] = [];
    for (let i = 0; i < manifest.files.length; i += checksInFlight) {
      const batch = manifest.files.slice(i, i + checksInFlight);
      const sizes = await Promise.all(batch.map((file) => home.sizeOf(file.digest, o)));
      lost.push(...batch.filter((file, k) => sizes[k] !== file.sizeBytes).map((file) => file.path));
    }
    return lost;
  }

  return {
    url: home.url,
    putBlob: home.putBlob,
    readBlob: home.readBlob,
    deleteBlob: home.deleteBlob,
    presignPut: home.presignPut,
    ...(home.blobPath === undefined ? {} : { blobPath: home.blobPath }),
    hasBlob: async (digest, o = {}) => (await home.sizeOf(digest, o)) !== undefined,
    async blobSize(digest, o = {}) {
      const size = await home.sizeOf(digest, o);
      if (size === undefined) throw blobNotFound(digest);
      return size;
    },
    async putManifest(manifest, o = {}) {
      const bytes = encodeManifest(manifest);
      const lost = await missing(manifest, o);
      if (lost.length > 0) {
        const shown = lost.slice(0, 5).join(', ');
        throw new Failure(
          'failed_precondition',
          `the manifest names ${lost.length} blobs that are not stored in that size: ${shown}`,
          {
            reason: 'BLOB_MISSING',
          },
        );
      }
      return (await home.putBlob(bytes, { signal: o.signal })).digest;
    },
    async getManifest(digest, o = {}) {
      const size = await home.sizeOf(digest, o);
      if (size === undefined) throw blobNotFound(digest);
      if (size > largestManifestBytes) {
        throw new Failure('data_loss', `the blob ${digest} is not a manifest: it has ${size} bytes`, {
          reason: 'MANIFEST_INVALID',
        });
      }
      const pieces: Uint8Array[] = [];
      for await (const piece of home.readBlob(digest, { signal: o.signal })) pieces.push(piece);
      return decodeManifest(digest, Buffer.concat(pieces));
    },
    readUri: (uri, o) => reach(uri).readUri(uri, o),
    uriSize: async (uri, o) => reach(uri).uriSize(uri, o),
    listUri: (prefix, o) => reach(prefix).listUri(prefix, o),
    writeUri: async (uri, source, o) => reach(uri).writeUri(uri, source, o),
    removeUri: async (uri, o) => reach(uri).removeUri(uri, o),
  };
}
