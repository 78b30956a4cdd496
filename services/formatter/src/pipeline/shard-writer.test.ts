import { describe, expect, test } from 'vitest';
import type { FittedRow } from './fit-row.ts';
import { decodeShard, type Shard } from './shard.ts';
import { createShardWriter } from './shard-writer.ts';

const rowOf = (length: number, first: number): FittedRow => ({
  ids: Uint32Array.from({ length }, (_, i) => first + i),
  mask: new Uint8Array(length).fill(1),
  spans: [],
  promptTokenCount: 0,
  trainableTokenCount: length,
  truncated: false,
});

function memorySink() {
  const shards: Shard[] = [];
  return {
    shards,
    async putBlob(source: unknown) {
      shards.push(decodeShard(source as Uint8Array));
      return { digest: `sha256:${shards.length}` as const, sizeBytes: (source as Uint8Array).length };
    },
  };
}

describe('the shard writer', () => {
  test('begins a new shard before one holds more than 65,536 rows', async () => {
    const sink = memorySink();
    const writer = createShardWriter(sink, 'train', AbortSignal.timeout(10_000));
    for (let i = 0; i < 65_537; i++) await writer.add(2 * i, rowOf(1, i));
    const { files, split } = await writer.finish();
    expect(sink.shards.map((s) => s.rowIndex.length)).toEqual([65_536, 1]);
    expect(sink.shards[1]).toMatchObject({ inputIds: Uint32Array.of(65_536), rowIndex: Uint32Array.of(131_072) });
    expect(files.map((f) => f.path)).toEqual(['train/00000.safetensors', 'train/00001.safetensors']);
    expect(split).toEqual({
      paths: files.map((f) => f.path),
      rowCount: 65_537,
      tokenCount: 65_537,
      trainableTokenCount: 65_537,
      maxRowTokens: 1,
    });
  });

  test('begins a new shard before one holds more than half a million tokens', async () => {
    const sink = memorySink();
    const writer = createShardWriter(sink, 'train', AbortSignal.timeout(10_000));
    for (let i = 0; i < 5; i++) await writer.add(i, rowOf(131_072, i));
    await writer.finish();
    expect(sink.shards.map((s) => s.inputIds.length)).toEqual([2 ** 19, 131_072]);
    expect(sink.shards[1]!.inputIds[0]).toBe(4);
  });

  test('writes nothing for a split without rows', async () => {
    const sink = memorySink();
    const { files, split } = await createShardWriter(sink, 'validation', AbortSignal.timeout(1000)).finish();
    expect(files).toEqual([]);
    expect(split.rowCount).toBe(0);
    expect(sink.shards).toEqual([]);
  });

  test('passes on that the store failed', async () => {
    const writer = createShardWriter(
      { putBlob: () => Promise.reject(new Error('no space')) },
      'train',
      AbortSignal.timeout(1000),
    );
    await writer.add(0, rowOf(1, 0));
    await expect(writer.finish()).rejects.toThrow('no space');
  });
});
