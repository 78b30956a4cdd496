import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { tempDir } from './temp-dir.ts';
import { writeSafetensors } from './write-safetensors.ts';
import { writeTinyModel } from './write-tiny-model.ts';

type Header = Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;

function readHeader(path: string): { header: Header; data: Buffer } {
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE(0));
  const { __metadata__: _, ...header } = JSON.parse(bytes.toString('utf8', 8, 8 + length));
  return { header, data: bytes.subarray(8 + length) };
}

test('a safetensors file holds each tensor at its offsets, bf16 rounded to nearest even', () => {
  const path = join(tempDir(), 'two.safetensors');
  const close = 1 + 2 ** -8; // halfway between 1 and the next bf16: even wins
  writeSafetensors(path, [
    { name: 'a', dtype: 'F32', shape: [2, 2], values: Float32Array.of(1, -2, 0.5, 3e38) },
    { name: 'b', dtype: 'BF16', shape: [3], values: Float32Array.of(close, 1 + 3 * 2 ** -8, -2) },
  ]);
  const { header, data } = readHeader(path);
  expect(header).toEqual({
    a: { dtype: 'F32', shape: [2, 2], data_offsets: [0, 16] },
    b: { dtype: 'BF16', shape: [3], data_offsets: [16, 22] },
  });
  expect([0, 4, 8, 12].map((offset) => data.readFloatLE(offset))).toEqual([1, -2, 0.5, Math.fround(3e38)]);
  expect([16, 18, 20].map((offset) => data.readUInt16LE(offset))).toEqual([0x3f80, 0x3f82, 0xc000]);
});

test('a tensor whose values do not fill its shape is refused', () => {
  const write = () =>
    writeSafetensors(join(tempDir(), 'x'), [{ name: 'a', dtype: 'F32', shape: [3], values: new Float32Array(2) }]);
  expect(write).toThrow('tensor a has 2 values, its shape [3] needs 3');
});

test('a tiny model has the tensors its config promises, and the same seed gives the same bytes', () => {
  const first = writeTinyModel(tempDir(), {
    family: 'qwen2',
    layers: 1,
    hidden: 16,
    heads: 4,
    kvHeads: 2,
    vocab: 50,
    tied: false,
  });
  const { header } = readHeader(join(first.dir, 'model.safetensors'));
  expect(header['model.embed_tokens.weight']?.shape).toEqual([50, 16]);
  expect(header['lm_head.weight']?.shape).toEqual([50, 16]);
  expect(header['model.layers.0.self_attn.k_proj.weight']?.shape).toEqual([8, 16]);
  expect(header['model.layers.0.self_attn.k_proj.bias']?.shape).toEqual([8]);
  expect(JSON.parse(readFileSync(join(first.dir, 'config.json'), 'utf8'))).toMatchObject({
    model_type: 'qwen2',
    num_hidden_layers: 1,
  });

  const again = writeTinyModel(tempDir(), {
    family: 'qwen2',
    layers: 1,
    hidden: 16,
    heads: 4,
    kvHeads: 2,
    vocab: 50,
    tied: false,
  });
  const other = writeTinyModel(tempDir(), {
    family: 'qwen2',
    layers: 1,
    hidden: 16,
    heads: 4,
    kvHeads: 2,
    vocab: 50,
    tied: false,
    seed: 2,
  });
  const bytes = (dir: string) => readFileSync(join(dir, 'model.safetensors'));
  expect(bytes(again.dir).equals(bytes(first.dir))).toBe(true);
  expect(bytes(other.dir).equals(bytes(first.dir))).toBe(false);
});

test('a Llama model has no biases, and heads that do not divide the width are refused', () => {
  const { dir } = writeTinyModel(tempDir(), { family: 'llama' });
  const names = Object.keys(readHeader(join(dir, 'model.safetensors')).header);
  expect(names.filter((name) => name.endsWith('.bias') || name === 'lm_head.weight')).toEqual([]);
  expect(() => writeTinyModel(tempDir(), { hidden: 30 })).toThrow('hidden 30 must be a multiple of heads 4');
});
