import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { goldenDir, temporaryDir } from '../test/fixtures/golden.ts';
import { loadModel } from './engine.ts';
import { exportGguf, verifyGguf } from './files.ts';
import type { GgufType, Progress } from './types.ts';

const demoBase = join(import.meta.dirname, '..', '..', 'demo', 'base');
let temp: ReturnType<typeof temporaryDir>;
beforeEach(() => {
  temp = temporaryDir();
});
afterEach(() => temp.remove());
const at = (...parts: string[]) => join(temp.dir, ...parts);

describe('exportGguf', () => {
  it('writes the demonstration base in every type, each a little farther from its source', async () => {
    let before = -1;
    let bytes = Number.POSITIVE_INFINITY;
    for (const type of ['f32', 'f16', 'q8_0'] satisfies GgufType[]) {
      const outPath = at(`${type}.gguf`);
      const result = await exportGguf({ modelDir: demoBase, outPath, type });
      expect(result).toMatchObject({ architecture: 'qwen2', tokenizer: 'gpt2', base: 'stored', contextLength: 512 });
      expect(readFileSync(outPath).subarray(0, 4).toString()).toBe('GGUF');
      expect(readFileSync(outPath).byteLength).toBe(result.fileBytes);
      expect(result.parity.logprobMean).toBeGreaterThan(before);
      expect(result.parity.logprobMean).toBeLessThan(0.04); // measured: q8_0 0.025
      expect(result.fileBytes).toBeLessThan(bytes);
      before = result.parity.logprobMean;
      bytes = result.fileBytes;
    }
    for (const type of ['q4_0', 'q4_k_m'] satisfies GgufType[]) {
      const result = await exportGguf({ modelDir: demoBase, outPath: at(`${type}.gguf`), type });
      expect(result.parity.logprobMean).toBeGreaterThan(before);
      expect(result.fileBytes).toBeLessThan(bytes);
    }
  });

  it('reports progress to the end and stops on an abort, leaving nothing', async () => {
    const seen: Progress[] = [];
    await exportGguf({
      modelDir: goldenDir('gemma2'),
      outPath: at('g.gguf'),
      type: 'q8_0',
      onProgress: (progress) => seen.push(progress),
    });
    expect(seen.at(-1)?.done).toBe(seen.at(-1)?.total);
    const aborted = exportGguf({
      modelDir: demoBase,
      outPath: at('a.gguf'),
      type: 'q4_k_m',
      signal: AbortSignal.abort(),
    });
    await expect(aborted).rejects.toMatchObject({ code: 'cancelled' });
    expect(existsSync(at('a.gguf'))).toBe(false);
  });

  it('refuses a taken path, an unknown type and a model that llama.cpp cannot compute', async () => {
    writeFileSync(at('taken'), '');
    const modelDir = goldenDir('llama3');
    await expect(exportGguf({ modelDir, outPath: at('taken'), type: 'f16' })).rejects.toMatchObject({
      code: 'invalid',
    });
    const type = 'q3_k' as GgufType;
    await expect(exportGguf({ modelDir, outPath: at('x.gguf'), type })).rejects.toMatchObject({
      code: 'invalid',
      message: expect.stringContaining('q4_k_m'),
    });
  });
});

describe('verifyGguf', () => {
  const sequences = [Uint32Array.of(5, 9, 100, 7, 7, 300), Uint32Array.of(1, 2)];

  it('finds in a file what was written into it, and scores by its numbers', async () => {
    const model = await loadModel({ modelDir: demoBase, compute: 'f32' });
    for (const [type, most] of [
      ['f32', 1e-4],
      ['q4_k_m', 1.5],
    ] as const) {
      const path = at(`${type}.gguf`);
      const { parity } = await exportGguf({ modelDir: demoBase, outPath: path, type });
      const { recorded, measured, logprobs } = await verifyGguf({ modelDir: demoBase, path, sequences });
      expect(recorded).toEqual(parity);
      expect(measured).toEqual(parity);
      for (const [i, tokens] of sequences.entries()) {
        const scores = await model.score({ tokens });
        expect(logprobs[i]).toHaveLength(tokens.length - 1);
        for (const [k, logprob] of logprobs[i]!.entries()) expect(Math.abs(logprob - scores[k]!)).toBeLessThan(most);
      }
    }
    await model.close();
  });

  it('measures a changed file as another one, and refuses a broken one and one of another model', async () => {
    const path = at('f16.gguf');
    await exportGguf({ modelDir: demoBase, outPath: path, type: 'f16' });
    const bytes = readFileSync(path);
    const changed = Buffer.from(bytes);
    // The last tensor's numbers, as they would be in another model.
    for (let i = changed.length - 4096; i < changed.length; i += 2) changed.writeUInt16LE(0x3800, i);
    writeFileSync(at('changed.gguf'), changed);
    const { recorded, measured } = await verifyGguf({ modelDir: demoBase, path: at('changed.gguf'), sequences });
    expect(measured.weightMax).toBeGreaterThan(10 * recorded!.weightMax);
    writeFileSync(at('cut.gguf'), bytes.subarray(0, bytes.length - 1000));
    await expect(verifyGguf({ modelDir: demoBase, path: at('cut.gguf'), sequences })).rejects.toMatchObject({
      code: 'corrupt',
    });
    await expect(verifyGguf({ modelDir: goldenDir('gemma2'), path, sequences })).rejects.toMatchObject({
      code: 'invalid',
      message: expect.stringContaining('qwen2'),
    });
    await expect(verifyGguf({ modelDir: demoBase, path, sequences: [Uint32Array.of(1)] })).rejects.toMatchObject({
      code: 'invalid',
    });
  });
});
