import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { demoBaseDir } from '@medmesh/demo';
import { exportGguf, type GgufType, verifyGguf } from '@medmesh/engine';
import { loadTokenizer } from '@medmesh/text';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { hasLlamaCpp, openLlamaCpp } from './llama-cpp.ts';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'llama-cpp-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

/** Tokens of no text, the same in every run, so that every part of a model has its say. */
function arbitraryTokens(count: number, vocabulary: number): Uint32Array {
  let state = 12345;
  return Uint32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >>> 8) % vocabulary;
  });
}

/** ln p of a token by the logits before it. */
function logProbability(logits: Float32Array, token: number): number {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  return logits[token]! - largest - Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
}

/** How far ln p of each token is by llama.cpp from what the engine computes in fp32 with the file's own numbers. */
async function distances(modelDir: string, type: GgufType): Promise<{ mean: number; max: number }> {
  const outPath = join(dir, `${type}.gguf`);
  const { contextLength } = await exportGguf({ modelDir, outPath, type });
  const { vocab_size } = JSON.parse(readFileSync(join(modelDir, 'config.json'), 'utf8')) as { vocab_size: number };
  const tokens = arbitraryTokens(Math.min(contextLength, 96), vocab_size);
  const { logprobs } = await verifyGguf({ modelDir, path: outPath, sequences: [tokens] });
  const llama = await openLlamaCpp(outPath, tokens.length);
  const logits = await llama.logits(tokens);
  await llama.close();
  expect(logits.map((each) => each.length)).toEqual(Array(tokens.length).fill(vocab_size));
  const off = Array.from(logprobs[0]!, (ours, i) => Math.abs(logProbability(logits[i]!, tokens[i + 1]!) - ours));
  expect(off).toHaveLength(tokens.length - 1);
  return { mean: off.reduce((a, b) => a + b) / off.length, max: Math.max(...off) };
}

describe.skipIf(!hasLlamaCpp)('llama.cpp', () => {
  // About twice what was measured. It rounds activations to fp16 or to 8 bits where the weights are of such types; the engine does not.
  test.each([
    ['f32', 4e-6, 1.5e-5],
    ['f16', 2e-3, 1e-2],
    ['q8_0', 0.06, 0.25],
    ['q4_0', 0.06, 0.25],
    ['q4_k_m', 0.08, 0.3],
  ] as const)(
    'computes with the demonstration base in %s what the engine finds in the file',
    async (type, mean, max) => {
      const off = await distances(demoBaseDir, type);
      expect(off.mean).toBeLessThan(mean);
      expect(off.max).toBeLessThan(max);
    },
  );

  // Gemma's activation comes out of a table of fp16 values there.
  test.each([
    ['llama3', 2.5e-5],
    ['llama_bias_linear', 1.2e-5],
    ['llama_dynamic', 1e-5],
    ['mistral', 1e-5],
    ['qwen2_window', 1.2e-5],
    ['qwen2_yarn', 1.2e-5],
    ['qwen3', 1e-5],
    ['gemma', 2.5e-3],
    ['gemma2', 2.5e-3],
    ['gemma3', 2.5e-3],
  ] as const)('computes the %s model in f32 as the engine does', async (name, max) => {
    const off = await distances(resolve(import.meta.dirname, '../../libs/engine/golden', name), 'f32');
    expect(off.max).toBeLessThan(max);
  });

  test('splits a text into the tokens of training', async () => {
    const outPath = join(dir, 'f16.gguf');
    await exportGguf({ modelDir: demoBaseDir, outPath, type: 'f16' });
    const llama = await openLlamaCpp(outPath, 64);
    const tokenizer = await loadTokenizer(demoBaseDir);
    expect(llama.addsBos).toBe(tokenizer.addsBos);
    for (const text of [
      '<|im_start|>user\nIs 38.5 °C a fever?<|im_end|>\n',
      "  two spaces, a tab\t, I'LL and don't\r\n\r\n 12345",
      '什么原因会引起胸痛？\u3000发烧',
      'émigré, ﬁne, ½, 👩‍⚕️, עברית\u00a0x',
    ])
      expect(llama.tokenize(text)).toEqual(Array.from(await tokenizer.encode(text, { parseSpecialTokens: true })));
    await llama.close();
  });
});
