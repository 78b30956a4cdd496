import { Failure } from '@medmesh/errors';
import { checkExpected, digestOf, newHash } from './digest.ts';
import type { PutOptions, ReadOptions, UriEntry, UriHome, WaitOptions } from './object-store.ts';
import type { S3Bucket } from './s3-client.ts';
import { readObject, sizeOfObject } from './s3-read.ts';
import { defaultLimits, upload } from './s3-upload.ts';
import { type BlobSource, checkRange, piecesOf } from './source.ts';

type Place = { bucket: string; key: string };

const longestKeyBytes = 1024;

const shown = (uri: string): string => JSON.stringify(uri.length > 200 ? `${uri.slice(0, 200)}…` : uri);

/** Objects as `s3://bucket/key`, on the endpoint of the store. Only below `roots`, which are such URIs themselves. */
export function createS3Uris(s3: S3Bucket, roots: readonly string[]): UriHome {
  const allowed = roots.map((root) => readUriText(root));

  function placeOf(uri: string): Place {
    const place = readUriText(uri);
    const inside = allowed.some(
      ({ bucket, key }) =>
        bucket === place.bucket &&
        (key === '' || place.key === key || place.key.startsWith(key.endsWith('/') ? key : `${key}/`)),
    );
    if (inside) return place;
    throw new Failure(
      'permission_denied',
      `${shown(uri)} is outside the places this process may use: ${roots.join(', ')}`,
      {
        reason: 'URI_NOT_ALLOWED',
      },
    );
  }

  const missing = (uri: string) => (): Failure =>
    new Failure('not_found', `${shown(uri)} does not exist`, { reason: 'URI_NOT_FOUND' });

  async function* readUri(uri: string, o: ReadOptions = {}): AsyncGenerator<Uint8Array> {
    checkRange(o);
    const { bucket, key } = placeOf(uri);
    yield* readObject(s3, bucket, key, { offset: o.offset ?? 0, length: o.length, signal: o.signal }, missing(uri));
  }

  async function uriSize(uri: string, o: WaitOptions = {}): Promise<number> {
    const { bucket, key } = placeOf(uri);
    const size = await sizeOfObject(s3, bucket, key, o.signal);
    if (size === undefined) throw missing(uri)();
    return size;
  }

  async function* listUri(prefix: string, o: WaitOptions = {}): AsyncGenerator<UriEntry> {
    const { bucket, key } = placeOf(prefix);
    const size = key === '' || key.endsWith('/') ? undefined : await sizeOfObject(s3, bucket, key, o.signal);
    if (size !== undefined) {
      yield { uri: prefix, path: key.slice(key.lastIndexOf('/') + 1), sizeBytes: size };
      return;
    }
    const folder = key === '' || key.endsWith('/') ? key : `${key}/`;
    const items = await s3.call(
      'list objects',
      () =>
        Array.fromAsync(
          s3.client.listObjectsV2(bucket, folder, true) as AsyncIterable<{ name?: string; size?: number }>,
        ),
      { signal: o.signal },
    );
    if (items.length === 0) throw missing(prefix)();
    for (const { name, size: sizeBytes } of items) {
      // Some tools make empty objects that stand for folders.
      if (name === undefined || name.endsWith('/')) continue;
      yield { uri: `s3://${bucket}/${name}`, path: name.slice(folder.length), sizeBytes: sizeBytes ?? 0 };
    }
  }

  async function writeUri(uri: string, source: BlobSource, o: PutOptions = {}): Promise<{ sizeBytes: number }> {
    const { bucket, key } = placeOf(uri);
    if (key === '' || key.endsWith('/'))
      throw new Failure('invalid_argument', `${shown(uri)} names a folder; name an object`, { reason: 'URI_INVALID' });
    const hash = newHash();
    let sizeBytes = 0;
    async function* pieces(): AsyncGenerator<Uint8Array> {
      for await (const piece of piecesOf(source, o.signal)) {
        hash.update(piece);
        sizeBytes += piece.length;
        o.onProgress?.(sizeBytes);
        yield piece;
      }
    }
    return upload({ ...s3, bucket }, key, pieces(), {
      limits: defaultLimits,
      signal: o.signal,
      async beforeCommit() {
        checkExpected(o.expectedDigest, digestOf(hash));
        return true;
      },
    });
  }

  async function removeUri(uri: string, o: WaitOptions = {}): Promise<void> {
    const { bucket, key } = placeOf(uri);
    if (key === '' || key.endsWith('/'))
      throw new Failure('invalid_argument', `${shown(uri)} names a folder; name an object`, { reason: 'URI_INVALID' });
    await s3.call('remove an object', () => s3.client.removeObject(bucket, key), { signal: o.signal });
  }

  return { readUri, uriSize, listUri, writeUri, removeUri };
}

/** Splits `s3://bucket/key`. The key is taken as it is written: nothing is decoded, and a path that means another one is refused. */
function readUriText(uri: string): Place {
  const match = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/(.*))?$/s.exec(uri);
  const key = match?.[2] ?? '';
  const strange = /[\p{Cc}\\]/u.test(key) || Buffer.byteLength(key) > longestKeyBytes;
  if (
    match === null ||
    strange ||
    key.split('/').some((part, i, all) => part === '..' || part === '.' || (part === '' && i < all.length - 1))
  ) {
    throw new Failure('invalid_argument', `${shown(uri)} is not an S3 URI; write s3://bucket/key`, {
      reason: 'URI_INVALID',
    });
  }
  return { bucket: match[1]!, key };
}
