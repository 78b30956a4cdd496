import { open } from 'node:fs/promises';
import { Failure } from '@medmesh/errors';

/**
 * Bytes to store: at once, as a stream, or a file's. A file that nobody will write to again may be called `immutable`: a store on the same file system
 * then takes it by a link, without a copy, and makes it read-only.
 */
export type BlobSource = AsyncIterable<Uint8Array> | Uint8Array | { readonly path: string; readonly immutable?: true };

/** Small enough that hashing one piece does not hold up the event loop, large enough that calls do not count. */
export const pieceBytes = 256 * 1024;

/** The source's bytes in pieces of at most 256 KiB. Ends with the signal's reason as soon as it aborts, even if the source hangs. */
export async function* piecesOf(source: BlobSource, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  if (source instanceof Uint8Array) {
    yield* slices(source, signal);
  } else if ('path' in source) {
    yield* fileRange(source.path, 0, undefined, signal);
  } else {
    for await (const chunk of untilAborted(source, signal)) yield* slices(chunk, signal);
  }
}

function* slices(bytes: Uint8Array, signal?: AbortSignal): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += pieceBytes) {
    signal?.throwIfAborted();
    yield bytes.subarray(at, at + pieceBytes);
  }
}

/** Bytes `offset` to `offset + length` (or the end) of a file. Each piece is a buffer of its own. */
export async function* fileRange(
  path: string,
  offset: number,
  length: number | undefined,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const file = await open(path, 'r');
  try {
    const end = length === undefined ? Number.POSITIVE_INFINITY : offset + length;
    for (let at = offset; at < end; ) {
      signal?.throwIfAborted();
      const buffer = Buffer.allocUnsafe(Math.min(pieceBytes, end - at));
      const { bytesRead } = await file.read(buffer, 0, buffer.length, at);
      if (bytesRead === 0) return;
      at += bytesRead;
      yield buffer.subarray(0, bytesRead);
    }
  } finally {
    await file.close();
  }
}

/** The iterable's values until it ends or the signal aborts; then its reason is thrown and the iterable is told to clean up. */
export async function* untilAborted<T>(source: AsyncIterable<T>, signal: AbortSignal | undefined): AsyncGenerator<T> {
  if (signal === undefined) {
    yield* source;
    return;
  }
  signal.throwIfAborted();
  // Not Promise.race: against one promise for the whole stream, every value would stay in memory until the stream ends.
  let abort = (_reason: unknown): void => undefined;
  let hanging = false;
  const onAbort = (): void => {
    hanging = true;
    abort(signal.reason);
  };
  signal.addEventListener('abort', onAbort, { once: true });
  const iterator = source[Symbol.asyncIterator]();
  try {
    for (;;) {
      signal.throwIfAborted();
      const next = await new Promise<IteratorResult<T>>((resolve, reject) => {
        abort = reject;
        iterator.next().then(resolve, reject);
      });
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    signal.removeEventListener('abort', onAbort);
    // A source that hangs would not answer this either.
    const cleaned = Promise.resolve(iterator.return?.()).catch(() => undefined);
    if (!hanging) await cleaned;
  }
}

/** Gathers pieces into parts of `sizeOf(index)` bytes each; the last may be shorter. An empty source gives no part. */
export async function* partsOf(
  pieces: AsyncIterable<Uint8Array>,
  sizeOf: (index: number) => number,
): AsyncGenerator<Buffer> {
  let index = 0;
  let part: Uint8Array[] = [];
  let room = sizeOf(0);
  for await (let piece of pieces) {
    while (piece.length >= room) {
      part.push(piece.subarray(0, room));
      piece = piece.subarray(room);
      yield Buffer.concat(part);
      part = [];
      index += 1;
      room = sizeOf(index);
    }
    if (piece.length > 0) {
      part.push(piece);
      room -= piece.length;
    }
  }
  if (part.length > 0) yield Buffer.concat(part);
}

/** Failure `invalid_argument` unless the range is whole numbers from 0 up. */
export function checkRange(o: { offset?: number; length?: number }): void {
  for (const [name, value] of Object.entries({ offset: o.offset ?? 0, length: o.length ?? 0 })) {
    if (!Number.isSafeInteger(value) || value < 0) {
      throw new Failure('invalid_argument', `${name} is ${value}; it must be a whole number from 0 up`, {
        reason: 'FIELD_INVALID',
      });
    }
  }
}
