import { randomUUID } from 'node:crypto';
import { Failure, invalidField } from '@medmesh/errors';
import {
  blobKey,
  blobNotFound,
  checkDigest,
  checkExpected,
  corrupt,
  type Digest,
  digestOf,
  digestOfBytes,
  newHash,
} from './digest.ts';
import type { BlobHome, PutOptions, ReadOptions, StoredBlob, WaitOptions } from './object-store.ts';
import { isNoSuchKey, type S3Bucket } from './s3-client.ts';
import { readObject, sizeOfObject } from './s3-read.ts';
import { copyObject, defaultLimits, putWhole, type UploadLimits, upload } from './s3-upload.ts';
import { type BlobSource, checkRange, piecesOf } from './source.ts';

/** Where content is collected whose digest is not known yet. */
const incoming = 'tmp/';
const abandonedMs = 24 * 60 * 60 * 1000;
const longestTtlSeconds = 7 * 24 * 60 * 60;

export type S3StoreOptions = { limits?: UploadLimits; signal?: AbortSignal | undefined; patienceMs?: number };

/** Blobs as objects of a bucket, which is made if there is none. */
export async function openS3Store(s3: S3Bucket, o: S3StoreOptions = {}): Promise<BlobHome> {
  const limits = o.limits ?? defaultLimits;
  const { client, bucket } = s3;
  await makeBucket(s3, o);
  // Not awaited: it concerns nobody who waits for the store.
  void removeAbandoned(s3).catch(() => undefined);

  const sizeOf = (digest: string, call: WaitOptions): Promise<number | undefined> =>
    sizeOfObject(s3, bucket, blobKey(digest), call.signal);

  /** What passes through is hashed and counted. */
  function measure(source: BlobSource, put: PutOptions) {
    const hash = newHash();
    let sizeBytes = 0;
    async function* pieces(): AsyncGenerator<Uint8Array> {
      for await (const piece of piecesOf(source, put.signal)) {
        hash.update(piece);
        sizeBytes += piece.length;
        put.onProgress?.(sizeBytes);
        yield piece;
      }
    }
    return { pieces: pieces(), finish: (): StoredBlob => ({ digest: digestOf(hash), sizeBytes }) };
  }

  async function putBlob(source: BlobSource, put: PutOptions = {}): Promise<StoredBlob> {
    if (put.expectedDigest !== undefined) checkDigest(put.expectedDigest);
    if (source instanceof Uint8Array && source.length <= limits.partBytes(0)) return putBytes(source, put);
    const known = put.expectedDigest ?? (await digestAhead(source, put));
    return known === undefined ? putUnknown(source, put) : putKnown(source, checkDigest(known), put);
  }

  async function putBytes(bytes: Uint8Array, put: PutOptions): Promise<StoredBlob> {
    const digest = digestOfBytes(bytes);
    checkExpected(put.expectedDigest, digest);
    if ((await sizeOf(digest, put)) !== bytes.length)
      await putWhole(s3, blobKey(digest), Buffer.from(bytes), put.signal);
    put.onProgress?.(bytes.length);
    return { digest, sizeBytes: bytes.length };
  }

  /** The digest of what can be read twice. */
  async function digestAhead(source: BlobSource, put: PutOptions): Promise<Digest | undefined> {
    if (!(source instanceof Uint8Array) && !('path' in source)) return undefined;
    const hash = newHash();
    for await (const piece of piecesOf(source, put.signal)) hash.update(piece);
    return digestOf(hash);
  }

  /** The name is known: uploads to it directly, unless it is there; then the content is only verified. */
  async function putKnown(source: BlobSource, digest: Digest, put: PutOptions): Promise<StoredBlob> {
    const { pieces, finish } = measure(source, put);
    if ((await sizeOf(digest, put)) !== undefined) {
      for await (const _ of pieces);
      const stored = finish();
      checkExpected(digest, stored.digest);
      return stored;
    }
    let stored: StoredBlob | undefined;
    await upload(s3, blobKey(digest), pieces, {
      limits,
      signal: put.signal,
      async beforeCommit() {
        stored = finish();
        checkExpected(digest, stored.digest);
        return true;
      },
    });
    return stored!;
  }

  /** A stream of unknown content: collected under a temporary key, and copied within the store once its digest is known. */
  async function putUnknown(source: BlobSource, put: PutOptions): Promise<StoredBlob> {
    const { pieces, finish } = measure(source, put);
    const temporary = `${incoming}${randomUUID()}`;
    let stored: StoredBlob | undefined;
    let there = false;
    await upload(s3, temporary, pieces, {
      limits,
      signal: put.signal,
      async beforeCommit() {
        stored = finish();
        there = (await sizeOf(stored.digest, put)) === stored.sizeBytes;
        return !there;
      },
    });
    if (there) return stored!;
    try {
      await copyObject(s3, temporary, blobKey(stored!.digest), stored!.sizeBytes, { limits, signal: put.signal });
    } finally {
      await s3
        .call('remove a temporary object', () => client.removeObject(bucket, temporary), { patienceMs: 5_000 })
        .catch(() => undefined);
    }
    return stored!;
  }

  async function* readBlob(digest: string, read: ReadOptions = {}): AsyncGenerator<Uint8Array> {
    checkRange(read);
    const offset = read.offset ?? 0;
    const whole = offset === 0 && read.length === undefined;
    const hash = newHash();
    const range = { offset, length: read.length, signal: read.signal };
    for await (const piece of readObject(s3, bucket, blobKey(digest), range, () => blobNotFound(digest))) {
      if (whole) hash.update(piece);
      yield piece;
    }
    if (!whole) return;
    const seen = digestOf(hash);
    if (seen !== digest) throw corrupt(digest, seen);
  }

  async function deleteBlob(digest: string, call: WaitOptions = {}): Promise<void> {
    const key = blobKey(digest);
    await s3.call('delete a blob', () => client.removeObject(bucket, key), call);
  }

  async function presignPut(key: string, ttlSeconds: number): Promise<{ url: string; uri: string }> {
    if (!/^[A-Za-z0-9][\w.-]*(\/[A-Za-z0-9][\w.-]*)*$/.test(key) || key.length > 512) {
      throw invalidField('key', 'use letters, digits, ".", "_" and "-", in parts separated by "/"');
    }
    if (!Number.isInteger(ttlSeconds) || ttlSeconds < 1 || ttlSeconds > longestTtlSeconds) {
      throw invalidField('ttl', `${ttlSeconds} s is not allowed; use 1 to ${longestTtlSeconds} s`);
    }
    const object = `uploads/${key}`;
    const url = await s3.call('sign an upload', () => client.presignedPutObject(bucket, object, ttlSeconds));
    return { url, uri: `s3://${bucket}/${object}` };
  }

  return { url: s3.url, putBlob, readBlob, deleteBlob, sizeOf, presignPut };
}

async function makeBucket(s3: S3Bucket, o: S3StoreOptions): Promise<void> {
  const { client, bucket, region } = s3;
  await s3.call(
    `open the bucket ${bucket}`,
    async () => {
      if (await client.bucketExists(bucket)) return;
      try {
        await client.makeBucket(bucket, region);
      } catch (error) {
        // Another process was faster.
        const code: unknown = error instanceof Error && 'code' in error ? error.code : undefined;
        if (code !== 'BucketAlreadyOwnedByYou' && code !== 'BucketAlreadyExists') throw error;
        if (!(await client.bucketExists(bucket))) {
          throw new Failure('permission_denied', `the bucket ${bucket} belongs to somebody else`, {
            reason: 'STORE_CREDENTIALS_REFUSED',
          });
        }
      }
    },
    o,
  );
}

/** Removes what processes left behind in the middle of a write: unfinished uploads anywhere, objects under tmp/. */
async function removeAbandoned(s3: S3Bucket): Promise<void> {
  const { client, bucket } = s3;
  const before = Date.now() - abandonedMs;
  for await (const item of client.listObjectsV2(bucket, incoming, true) as AsyncIterable<{
    name?: string;
    lastModified?: Date;
  }>) {
    if (item.name !== undefined && (item.lastModified?.getTime() ?? before) < before)
      await client.removeObject(bucket, item.name);
  }
  const uploads = client.listIncompleteUploads(bucket, '', true) as AsyncIterable<{
    key: string;
    uploadId: string;
    initiated: Date;
  }>;
  for await (const item of uploads) {
    if (new Date(item.initiated).getTime() >= before) continue;
    await client.abortMultipartUpload(bucket, item.key, item.uploadId).catch((error: unknown) => {
      if (!isNoSuchKey(error)) throw error;
    });
  }
}
