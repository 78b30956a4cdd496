import type { SplitFiles } from '@medmesh/catalog';
import type { ManifestFile, StoredBlob } from '@medmesh/objects';
import type { FittedRow } from './fit-row.ts';
import { encodeShard } from './shard.ts';

/** Where shards go: an object store, or the way to one. */
export type ShardSink = {
  putBlob(bytes: Uint8Array, o: { readonly signal: AbortSignal }): Promise<StoredBlob>;
};

/** A shard ends before it would hold more than this: 2.5 MiB of ids and masks, 512 KiB of offsets. A longer row has its own. */
const maxShardTokens = 2 ** 19;
const maxShardRows = 2 ** 16;

export type ShardWriter = {
  /** Adds a row, in order. Resolves when there is room for the next. */
  add(index: number, row: FittedRow): Promise<void>;
  /** Stores what is left, and tells what was written. */
  finish(): Promise<{ files: ManifestFile[]; split: SplitFiles }>;
};

/** Collects the rows of one split into shards and stores each as soon as it is full. */
export function createShardWriter(store: ShardSink, split: string, signal: AbortSignal): ShardWriter {
  const files: ManifestFile[] = [];
  const totals = { rowCount: 0, tokenCount: 0, trainableTokenCount: 0, maxRowTokens: 0 };
  // Grown by doubling and kept from shard to shard.
  let ids = new Uint32Array(2 ** 16);
  let mask = new Uint8Array(2 ** 16);
  let file: Buffer | undefined;
  let offsets: bigint[] = [0n];
  let indexes: number[] = [];
  let length = 0;

  const reserve = (size: number): void => {
    if (size <= ids.length) return;
    const capacity = 2 ** Math.ceil(Math.log2(size));
    const widerIds = new Uint32Array(capacity);
    widerIds.set(ids);
    ids = widerIds;
    const widerMask = new Uint8Array(capacity);
    widerMask.set(mask);
    mask = widerMask;
  };
  const flush = async (): Promise<void> => {
    const bytes = encodeShard(
      {
        inputIds: ids.subarray(0, length),
        lossMask: mask.subarray(0, length),
        rowOffsets: BigUint64Array.from(offsets),
        rowIndex: Uint32Array.from(indexes),
      },
      file,
    );
    // The store has taken all bytes before the next shard is written over them.
    if (file === undefined || bytes.length > file.length) file = bytes;
    const path = `${split}/${String(files.length).padStart(5, '0')}.safetensors`;
    const { digest, sizeBytes } = await store.putBlob(bytes, { signal });
    files.push({ path, digest, sizeBytes });
    offsets = [0n];
    indexes = [];
    length = 0;
  };

  return {
    async add(index, row) {
      const size = row.ids.length;
      if (indexes.length > 0 && (length + size > maxShardTokens || indexes.length >= maxShardRows)) await flush();
      reserve(length + size);
      ids.set(row.ids, length);
      mask.set(row.mask, length);
      length += size;
      offsets.push(BigInt(length));
      indexes.push(index);
      totals.rowCount += 1;
      totals.tokenCount += size;
      totals.trainableTokenCount += row.trainableTokenCount;
      totals.maxRowTokens = Math.max(totals.maxRowTokens, size);
    },
    async finish() {
      if (indexes.length > 0) await flush();
      return { files, split: { paths: files.map((f) => f.path), ...totals } };
    },
  };
}
