import { createHash, type Hash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { Failure } from '@medmesh/errors';
import { decodeText } from './decode-text.ts';
import type { RawRow, RowLimits, Warn } from './raw-row.ts';
import { readCsv } from './read-csv.ts';
import { readJsonArray } from './read-json-array.ts';
import { readJsonl } from './read-jsonl.ts';
import { readParquet } from './read-parquet.ts';
import type { Compression, SourceFormat } from './source-format.ts';

/** A file of rows, wherever it lies. */
export type SourceFile = {
  readonly format: SourceFormat;
  /** Opens the stored bytes from the beginning. */
  open(signal: AbortSignal): AsyncIterable<Uint8Array>;
  /** A local path of the same bytes, where there is one. Parquet needs one; it is copied to a temporary file otherwise. */
  readonly path?: string | undefined;
};

export type ReadOptions = {
  readonly limits: RowLimits;
  /** Columns that may be needed, in lower case. */
  readonly wanted: ReadonlySet<string>;
  readonly warn: Warn;
  /** Called with the count of stored bytes that were read since the last call. */
  readonly onBytes: (count: number) => void;
  readonly signal: AbortSignal;
};

/** For `wanted`, where a file's columns are not known by name. */
export const everyColumn: ReadonlySet<string> = Object.assign(new Set<string>(), { has: () => true });

export type OpenSource = {
  readonly rows: AsyncGenerator<RawRow[]>;
  /** `sha256:<hex>` of the stored bytes. Reads what the rows' consumer left unread. */
  digest(): Promise<string>;
  /** Lets go of the source. Not needed after `digest`. */
  close(): Promise<void>;
};

/** Opens a source for one pass over its rows. The rows' generator must be run to its end or returned. */
export function openSource(source: SourceFile, o: ReadOptions): OpenSource {
  const hash = createHash('sha256');
  const bytes = hashed(source.open(o.signal), hash, o.onBytes);
  return {
    rows: readRows(source, bytes, o),
    async digest() {
      // A consumer that stopped early left the iterator open: the digest is over all bytes.
      for (let next = await bytes.next(); next.done !== true; next = await bytes.next());
      return `sha256:${hash.digest('hex')}`;
    },
    async close() {
      await bytes.return(undefined);
    },
  };
}

async function* readRows(
  source: SourceFile,
  bytes: AsyncGenerator<Uint8Array>,
  o: ReadOptions,
): AsyncGenerator<RawRow[]> {
  const { rows, compression, charset } = source.format;
  if (rows === 'parquet') {
    yield* readLocalParquet(source, bytes, o);
    return;
  }
  const text = decodeText(decompress(keepOpen(bytes), compression, o.signal), charset, o.warn);
  if (rows === 'jsonl') yield* readJsonl(text, o.limits);
  else if (rows === 'json') yield* readJsonArray(text, o.limits, o.warn);
  else yield* readCsv(text, o.limits, o.warn);
}

async function* readLocalParquet(
  source: SourceFile,
  bytes: AsyncGenerator<Uint8Array>,
  o: ReadOptions,
): AsyncGenerator<RawRow[]> {
  if (source.path !== undefined && source.format.compression === 'none') {
    yield* readParquet(source.path, o.wanted, o.signal);
    return;
  }
  const dir = await mkdtemp(join(tmpdir(), 'medmesh-parquet-'));
  try {
    const path = join(dir, 'rows.parquet');
    const plain = decompress(keepOpen(bytes), source.format.compression, o.signal);
    await pipeline(Readable.from(plain), createWriteStream(path, { mode: 0o600 }), { signal: o.signal });
    yield* readParquet(path, o.wanted, o.signal);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

async function* hashed(
  source: AsyncIterable<Uint8Array>,
  hash: Hash,
  onBytes: (count: number) => void,
): AsyncGenerator<Uint8Array> {
  for await (const chunk of source) {
    hash.update(chunk);
    onBytes(chunk.length);
    yield chunk;
  }
}

/** The same values, but a consumer that stops early does not close the source. */
function keepOpen(source: AsyncGenerator<Uint8Array>): AsyncIterable<Uint8Array> {
  return { [Symbol.asyncIterator]: () => ({ next: () => source.next() }) };
}

async function* decompress(
  bytes: AsyncIterable<Uint8Array>,
  compression: Compression,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  if (compression === 'none') {
    yield* bytes;
    return;
  }
  // Output chunks are small whatever the ratio, and are pulled one by one: a bomb costs time, not memory.
  const options = { chunkSize: 256 * 1024 };
  const inflate = compression === 'gzip' ? createGunzip(options) : createZstdDecompress(options);
  const fed = pipeline(Readable.from(bytes), inflate, { signal });
  // The error is thrown by the loop below; without this it would also count as unhandled.
  fed.catch(() => undefined);
  try {
    for await (const chunk of inflate) yield chunk as Buffer;
    await fed;
  } catch (cause) {
    signal.throwIfAborted();
    const code = cause instanceof Error && 'code' in cause ? String(cause.code) : '';
    if (!/^(Z_|ZSTD_|ERR_ZLIB|ERR_ZSTD)/.test(code)) throw cause;
    throw new Failure(
      'invalid_argument',
      `the file is not valid ${compression} data (${code}); it may be damaged or cut off`,
      {
        reason: 'SOURCE_INVALID',
      },
    );
  } finally {
    inflate.destroy();
  }
}
