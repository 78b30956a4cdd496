import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { inspectSafetensors, type TensorInfo } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';

/** One tokenised row. `lossMask[i]` says whether token i counts in the loss. */
export type TokenRow = { inputIds: Uint32Array; lossMask: Uint8Array };

/** Rows of a dataset version, read from its shards on demand: memory holds 8 bytes a row. */
export type RowReader = {
  rowCount: number;
  /** Tokens of row i. */
  rowLength(row: number): number;
  read(row: number): Promise<TokenRow>;
  close(): Promise<void>;
};

type Shard = {
  file: FileHandle;
  idsOffset: number;
  maskOffset: number;
  rowOffsets: BigUint64Array;
  firstRow: number;
  rowCount: number;
};

const corrupt = (path: string, why: string) =>
  new Failure('data_loss', `shard ${path}: ${why}; build the dataset version again`, { reason: 'SHARD_CORRUPT' });

async function readExactly(file: FileHandle, path: string, bytes: Uint8Array, position: number): Promise<void> {
  const { bytesRead } = await file.read(bytes, 0, bytes.byteLength, position);
  if (bytesRead !== bytes.byteLength) throw corrupt(path, `ends after ${position + bytesRead} bytes`);
}

function tensor(tensors: TensorInfo[], path: string, name: string, dtype: string): TensorInfo {
  const found = tensors.find((t) => t.name === name);
  if (found === undefined || found.dtype.toLowerCase() !== dtype || found.shape.length !== 1)
    throw corrupt(path, `has no ${dtype} vector ${name}`);
  return found;
}

async function openShard(dir: string, path: string, firstRow: number): Promise<Shard> {
  const full = join(dir, path);
  const { tensors } = await inspectSafetensors(full);
  const ids = tensor(tensors, path, 'input_ids', 'u32');
  const mask = tensor(tensors, path, 'loss_mask', 'u8');
  const offsets = tensor(tensors, path, 'row_offsets', 'u64');
  const file = await open(full, 'r');
  try {
    const rowOffsets = new BigUint64Array(offsets.byteLength / 8);
    await readExactly(file, path, new Uint8Array(rowOffsets.buffer), offsets.byteOffset);
    const tokens = BigInt(ids.shape[0] ?? 0);
    if (
      rowOffsets.length === 0 ||
      rowOffsets[0] !== 0n ||
      rowOffsets.at(-1) !== tokens ||
      mask.shape[0] !== ids.shape[0]
    ) {
      throw corrupt(path, 'its row offsets do not span its tokens');
    }
    for (let i = 1; i < rowOffsets.length; i++) {
      if ((rowOffsets[i] ?? 0n) <= (rowOffsets[i - 1] ?? 0n)) throw corrupt(path, `row ${i - 1} is empty`);
    }
    return {
      file,
      idsOffset: ids.byteOffset,
      maskOffset: mask.byteOffset,
      rowOffsets,
      firstRow,
      rowCount: rowOffsets.length - 1,
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Opens the shards of a split, in order. `dir` is the materialized manifest. Failure `data_loss` if a shard is not what it should be. */
export async function openRows(dir: string, paths: readonly string[]): Promise<RowReader> {
  const shards: Shard[] = [];
  const close = async () => {
    await Promise.all(shards.map((shard) => shard.file.close()));
  };
  let rowCount = 0;
  try {
    for (const path of paths) {
      const shard = await openShard(dir, path, rowCount);
      shards.push(shard);
      rowCount += shard.rowCount;
    }
  } catch (error) {
    await close();
    throw error;
  }

  const locate = (row: number): { shard: Shard; start: number; end: number } => {
    let low = 0;
    let high = shards.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((shards[middle]?.firstRow ?? 0) <= row) low = middle;
      else high = middle - 1;
    }
    const shard = shards[low];
    if (shard === undefined || row < 0 || row >= rowCount) throw new RangeError(`row ${row} of ${rowCount}`);
    const at = row - shard.firstRow;
    return { shard, start: Number(shard.rowOffsets[at]), end: Number(shard.rowOffsets[at + 1]) };
  };

  return {
    rowCount,
    rowLength(row) {
      const { start, end } = locate(row);
      return end - start;
    },
    async read(row) {
      const { shard, start, end } = locate(row);
      const inputIds = new Uint32Array(end - start);
      const lossMask = new Uint8Array(end - start);
      await readExactly(shard.file, `with row ${row}`, new Uint8Array(inputIds.buffer), shard.idsOffset + start * 4);
      await readExactly(shard.file, `with row ${row}`, lossMask, shard.maskOffset + start);
      return { inputIds, lossMask };
    },
    close,
  };
}

/** Several versions read as one, one after the other. */
export function concatRows(readers: readonly RowReader[]): RowReader {
  const firstRows: number[] = [];
  let rowCount = 0;
  for (const reader of readers) {
    firstRows.push(rowCount);
    rowCount += reader.rowCount;
  }
  const locate = (row: number): { reader: RowReader; at: number } => {
    const index = firstRows.findLastIndex((first) => first <= row);
    const reader = readers[index];
    if (reader === undefined) throw new RangeError(`row ${row} of ${rowCount}`);
    return { reader, at: row - (firstRows[index] ?? 0) };
  };
  return {
    rowCount,
    rowLength(row) {
      const { reader, at } = locate(row);
      return reader.rowLength(at);
    },
    read(row) {
      const { reader, at } = locate(row);
      return reader.read(at);
    },
    async close() {
      await Promise.all(readers.map((reader) => reader.close()));
    },
  };
}
