import type { Failure } from '@medmesh/errors';
import { describe, expect, test } from 'vitest';
import { decodeShard, encodeShard, type Shard } from './shard.ts';

describe('a shard', () => {
  const shard: Shard = {
    inputIds: Uint32Array.of(5, 151_645, 7, 8, 9),
    lossMask: Uint8Array.of(0, 1, 0, 1, 1),
    rowOffsets: BigUint64Array.of(0n, 2n, 5n),
    rowIndex: Uint32Array.of(3, 9),
  };

  test('comes back from its bytes, which are always the same', () => {
    expect(decodeShard(encodeShard(shard))).toEqual(shard);
    expect(encodeShard(shard)).toEqual(encodeShard(shard));
  });

  test('is a safetensors file with the tensors of the format', () => {
    const file = Buffer.from(encodeShard(shard));
    const length = Number(file.readBigUInt64LE(0));
    expect(length % 8).toBe(0);
    expect(JSON.parse(file.toString('latin1', 8, 8 + length))).toEqual({
      row_offsets: { dtype: 'U64', shape: [3], data_offsets: [0, 24] },
      input_ids: { dtype: 'U32', shape: [5], data_offsets: [24, 44] },
      row_index: { dtype: 'U32', shape: [2], data_offsets: [44, 52] },
      loss_mask: { dtype: 'U8', shape: [5], data_offsets: [52, 57] },
    });
    expect(file.length).toBe(8 + length + 57);
  });

  test('that is damaged in any byte of its frame is refused or still a shard of the same size', () => {
    const file = encodeShard(shard);
    for (let at = 0; at < file.length - 57; at++) {
      const damaged = Uint8Array.from(file);
      damaged[at]! ^= 0x01;
      let outcome: unknown;
      try {
        outcome = decodeShard(damaged).inputIds.length;
      } catch (e) {
        outcome = (e as Failure).reason;
      }
      expect([5, 'SHARD_CORRUPT']).toContain(outcome);
    }
    for (let length = 0; length < file.length; length++) {
      expect(() => decodeShard(file.subarray(0, length))).toThrow(/the shard is damaged/);
    }
  });
});
