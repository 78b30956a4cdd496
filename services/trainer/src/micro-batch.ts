import type { MicroBatch } from '@medmesh/engine';
import type { RowReader } from './shards.ts';

/** Reads rows and lays them end to end, as the engine takes them: inputIds and lossMask [T], rowOffsets [rows + 1]. */
export async function readMicroBatch(rows: RowReader, indexes: readonly number[]): Promise<MicroBatch> {
  const parts = await Promise.all(indexes.map((row) => rows.read(row)));
  const tokenCount = parts.reduce((sum, part) => sum + part.inputIds.length, 0);
  const batch: MicroBatch = {
    inputIds: new Uint32Array(tokenCount),
    lossMask: new Uint8Array(tokenCount),
    rowOffsets: new Uint32Array(parts.length + 1),
  };
  let at = 0;
  for (const [i, part] of parts.entries()) {
    batch.inputIds.set(part.inputIds, at);
    batch.lossMask.set(part.lossMask, at);
    at += part.inputIds.length;
    batch.rowOffsets[i + 1] = at;
  }
  return batch;
}
