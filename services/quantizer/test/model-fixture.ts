import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TinyModelOptions, tempDir, writeTinyModel } from '@medmesh/testkit';
import { writeTinyTokenizer } from '@medmesh/text/testing';

/** A model folder with a tokenizer (271 tokens) and random weights. Changes of `seed` give other weights. */
export async function writeModelFolder(dir = tempDir('model'), options: TinyModelOptions = {}): Promise<string> {
  mkdirSync(dir, { recursive: true });
  writeTinyModel(dir, {
    family: 'qwen2',
    layers: 2,
    hidden: 64,
    heads: 4,
    kvHeads: 2,
    vocab: 320,
    dtype: 'BF16',
    ...options,
  });
  return writeTinyTokenizer(dir);
}

/** A folder's files by name, as a hub publishes them. */
export function filesOf(dir: string): Record<string, Buffer> {
  return Object.fromEntries(readdirSync(dir).map((name) => [name, readFileSync(join(dir, name))]));
}
