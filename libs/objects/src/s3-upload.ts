import { CopyConditions } from 'minio';
import type { S3Bucket } from './s3-client.ts';
import { partsOf } from './source.ts';

const mebibyte = 1024 * 1024;

/** Sizes that S3 sets limits to. Tests use smaller ones, down to S3's 5 MiB. */
export type UploadLimits = {
  /** Bytes of the part with this index. At most 10,000 parts: later ones are larger, so that 1 TB of unknown length fits. */
  partBytes: (index: number) => number;
  /** The largest object that one request copies. */
  copyBytes: number;
};

export const defaultLimits: UploadLimits = {
  // Small parts first: they pass through memory, and each is hashed for its signature in one go.
  partBytes: (index) => (index < 1000 ? 8 * mebibyte : index < 4000 ? 32 * mebibyte : 256 * mebibyte),
  copyBytes: 1024 * mebibyte,
};

const partsInFlight = 3;

export type Uploaded = { sizeBytes: number };

export type UploadOptions = {
  limits: UploadLimits;
  signal?: AbortSignal | undefined;
  /** Called when all bytes are sent and nothing is visible yet. Throwing leaves nothing behind; false too. */
  beforeCommit?: () => Promise<boolean>;
};

/**
 * Uploads pieces of unknown total length to `key`. One part is sent as one request; more become a multipart upload. Either way the object appears
 * complete or not at all, and whatever goes wrong, the parts are removed.
 */
export async function upload(
  s3: S3Bucket,
  key: string,
  pieces: AsyncIterable<Uint8Array>,
  o: UploadOptions,
): Promise<Uploaded> {
  const parts = partsOf(pieces, o.limits.partBytes)[Symbol.asyncIterator]();
  try {
    const first = await parts.next();
    const second = first.done === true ? first : await parts.next();
    if (second.done === true) {
      const body = first.done === true ? Buffer.alloc(0) : first.value;
      if ((await o.beforeCommit?.()) !== false) await putWhole(s3, key, body, o.signal);
      return { sizeBytes: body.length };
    }
    return await uploadParts(s3, key, prepend([first.value as Buffer, second.value], parts), o);
  } finally {
    await parts.return?.(undefined);
  }
}

/** Stores bytes that fit into one request. */
export async function putWhole(
  s3: S3Bucket,
  key: string,
  body: Buffer,
  signal: AbortSignal | undefined,
): Promise<void> {
  await s3.call('store an object', () => s3.client.putObject(s3.bucket, key, body, body.length), { signal });
}

async function* prepend<T>(first: T[], rest: AsyncIterator<T>): AsyncGenerator<T> {
  yield* first;
  for (let next = await rest.next(); next.done !== true; next = await rest.next()) yield next.value;
}

type Etag = { part: number; etag: string };

async function uploadParts(
  s3: S3Bucket,
  key: string,
  parts: AsyncIterable<Buffer>,
  o: UploadOptions,
): Promise<Uploaded> {
  return multipart(s3, key, o, async (uploadID) => {
    let sizeBytes = 0;
    const etags: Etag[] = [];
    const sending = new Set<Promise<void>>();
    let failed: { error: unknown } | undefined;
    let partNumber = 0;
    try {
      for await (const part of parts) {
        partNumber += 1;
        sizeBytes += part.length;
        const config = { bucketName: s3.bucket, objectName: key, uploadID, partNumber, headers: {} };
        const sent = s3
          .call('upload a part', () => s3.client.uploadPart(config, part), { signal: o.signal })
          .then(
            (result) => void etags.push({ part: config.partNumber, etag: result.etag }),
            (error: unknown) => {
              failed ??= { error };
            },
          )
          .finally(() => sending.delete(sent));
        sending.add(sent);
        if (sending.size >= partsInFlight) await Promise.race(sending);
        if (failed !== undefined) break;
      }
    } finally {
      // A part that arrived after the upload was removed would stay for ever.
      await Promise.all(sending);
    }
    if (failed !== undefined) throw failed.error;
    return { etags, result: { sizeBytes } };
  });
}

/** Begins a multipart upload, lets `send` send its parts, and completes it; whatever goes wrong, and when `beforeCommit` says no, removes it. */
async function multipart<T>(
  s3: S3Bucket,
  key: string,
  o: Pick<UploadOptions, 'signal' | 'beforeCommit'>,
  send: (uploadId: string) => Promise<{ etags: Etag[]; result: T }>,
): Promise<T> {
  const { client, bucket } = s3;
  const uploadId = await s3.call('begin an upload', () => client.initiateNewMultipartUpload(bucket, key, {}), {
    signal: o.signal,
  });
  let complete = false;
  try {
    const { etags, result } = await send(uploadId);
    if ((await o.beforeCommit?.()) === false) return result;
    etags.sort((a, b) => a.part - b.part);
    await s3.call('complete an upload', () => client.completeMultipartUpload(bucket, key, uploadId, etags), {
      signal: o.signal,
    });
    complete = true;
    return result;
  } finally {
    if (!complete) {
      // Without the caller's signal: it may be what ended the upload. If the store is away, its lifecycle rule is the second broom.
      await s3
        .call('remove an unfinished upload', () => client.abortMultipartUpload(bucket, key, uploadId), {
          patienceMs: 5_000,
        })
        .catch(() => undefined);
    }
  }
}

/** Copies an object within the bucket, in the store. The copy appears complete or not at all. */
export async function copyObject(
  s3: S3Bucket,
  from: string,
  to: string,
  sizeBytes: number,
  o: { limits: UploadLimits; signal?: AbortSignal | undefined },
): Promise<void> {
  const { client, bucket } = s3;
  const source = `/${bucket}/${from}`;
  if (sizeBytes <= o.limits.copyBytes) {
    await s3.call('copy an object', () => client.copyObject(bucket, to, source, new CopyConditions()), {
      signal: o.signal,
    });
    return;
  }
  await multipart(s3, to, o, async (uploadID) => {
    const etags: Etag[] = [];
    for (let at = 0, partNumber = 1; at < sizeBytes; at += o.limits.copyBytes, partNumber += 1) {
      const last = Math.min(at + o.limits.copyBytes, sizeBytes) - 1;
      const headers = { 'x-amz-copy-source': source, 'x-amz-copy-source-range': `bytes=${at}-${last}` };
      const config = { bucketName: bucket, objectName: to, uploadID, partNumber, headers };
      const part = await s3.call('copy a part', () => client.uploadPart(config), { signal: o.signal });
      etags.push({ part: partNumber, etag: part.etag });
    }
    return { etags, result: undefined };
  });
}
