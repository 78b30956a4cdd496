import { Failure } from '@medmesh/errors';
import { isNoSuchKey, type S3Bucket } from './s3-client.ts';

/** How often reading goes on after a broken connection without a single byte in between. */
const mostBarrenAttempts = 20;

export type RangeOptions = { offset: number; length: number | undefined; signal: AbortSignal | undefined };

/**
 * Bytes of an object. A connection that breaks is replaced by one that asks for the rest; the reader notices nothing.
 * Throws what `missing` makes if the object does not exist.
 */
export async function* readObject(
  s3: S3Bucket,
  bucket: string,
  key: string,
  o: RangeOptions,
  missing: () => Failure,
): AsyncGenerator<Uint8Array> {
  const { signal } = o;
  const size = await sizeOfObject(s3, bucket, key, signal);
  if (size === undefined) throw missing();
  const end = o.length === undefined ? size : Math.min(size, o.offset + o.length);
  let at = o.offset;
  for (let barren = 0; at < end; barren += 1) {
    const before = at;
    const stream = await s3
      .call('read an object', () => s3.client.getPartialObject(bucket, key, at, end - at), { signal })
      .catch((error: unknown) => {
        throw isNoSuchKey(error) ? missing() : error;
      });
    try {
      for await (const chunk of stream as AsyncIterable<Buffer>) {
        signal?.throwIfAborted();
        at += chunk.length;
        yield chunk;
      }
    } catch (error) {
      signal?.throwIfAborted();
      if (!isBrokenConnection(error)) throw error;
    } finally {
      stream.destroy();
    }
    if (at > before) barren = 0;
    if (barren >= mostBarrenAttempts) {
      throw new Failure('unavailable', 'the object store breaks off every answer before its first byte', {
        reason: 'STORE_UNAVAILABLE',
      });
    }
  }
}

/** Errors of the response's stream; a Failure or an error thrown into the generator is none. */
const isBrokenConnection = (error: unknown): boolean =>
  error instanceof Error &&
  'code' in error &&
  ['ECONNRESET', 'ETIMEDOUT', 'EPIPE', 'ERR_STREAM_PREMATURE_CLOSE'].includes(String(error.code));

/** Undefined if there is no such object. */
export async function sizeOfObject(
  s3: S3Bucket,
  bucket: string,
  key: string,
  signal: AbortSignal | undefined,
): Promise<number | undefined> {
  try {
    return (await s3.call('look up an object', () => s3.client.statObject(bucket, key), { signal })).size;
  } catch (error) {
    if (isNoSuchKey(error)) return undefined;
    throw error;
  }
}
