import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { demoBaseDir } from '@medmesh/demo';
import { tempDir } from '@medmesh/testkit';
import { describe, expect, test } from 'vitest';
import {
  engine,
  engineJson,
  engineLines,
  goldenModel,
  readFloats,
  relativeError,
  writeSequences,
} from '../../../test/engine-command.ts';

describe('engine export', { timeout: 120_000 }, () => {
  test('merges an adapter into its base: the folder scores as the two do together', async () => {
    const dir = tempDir();
    const model = goldenModel('llama3');
    const at = (name: string) => join(dir, name);
    const file = writeSequences(at('s.json'), [[3, 5, 7, 11, 13, 17, 19, 23, 29, 31]]);
    const train = ['train', '--model', model, '--sequences', file, '--rank', '4', '--steps', '4', '--lr', '1e-2'];
    await engineLines(...train, '--out', at('adapter'));
    const made = await engineJson([
      'export',
      '--merge',
      '--model',
      model,
      '--adapter',
      at('adapter'),
      '--out',
      at('merged'),
    ]);
    expect(made).toMatchObject({ out: at('merged'), format: 'safetensors', base: 'stored' });
    const score = async (name: string, ...args: string[]) => {
      await engineJson('score', '--dtype', 'f32', '--sequences', file, '--out', at(name), ...args);
      return (await readFloats(at(name))).get('logits_0')?.values as Float32Array;
    };
    const together = await score('together', '--model', model, '--adapter', at('adapter'));
    const merged = await score('merged-logits', '--model', at('merged'));
    const base = await score('base', '--model', model);
    // The merged weights are rounded to bf16 once more, the size of a plain bf16 computation's error.
    const { bf16_logits_error: rounding } = JSON.parse(readFileSync(join(model, 'reference.json'), 'utf8')) as {
      bf16_logits_error: number;
    };
    expect(relativeError(merged, together)).toBeLessThan(rounding);
    expect(relativeError(base, together)).toBeGreaterThan(10 * rounding);

    await engineJson('quantize', '--model', model, '--out', at('nf4'));
    const dequantized = await engineJson([
      'export',
      '--merge',
      '--model',
      at('nf4'),
      '--adapter',
      at('adapter'),
      '--out',
      at('plain'),
    ]);
    expect(dequantized).toMatchObject({ base: 'nf4_dequantized' });
  });

  test('writes a GGUF file that says how far it is from its source', async () => {
    const dir = tempDir();
    const at = (name: string) => join(dir, name);
    const distances: number[] = [];
    for (const type of ['f32', 'q8_0', 'q4_0']) {
      const made = await engineJson('export', '--model', demoBaseDir, '--gguf', type, '--out', at(`${type}.gguf`));
      expect(made).toMatchObject({ format: 'gguf', type, architecture: 'qwen2', tokenizer: 'gpt2', base: 'stored' });
      const file = readFileSync(at(`${type}.gguf`));
      expect(file.subarray(0, 4).toString()).toBe('GGUF');
      expect(made['file_bytes']).toBe(file.length);
      distances.push((made['parity'] as { kl_mean: number }).kl_mean);
    }
    expect(distances).toEqual(distances.toSorted((a, b) => a - b));
    const file = writeSequences(at('s.json'), [[3, 5, 7, 11, 13, 17, 19, 23, 29, 31]]);
    await engineJson('train', '--model', demoBaseDir, '--sequences', file, '--lr', '1e-2', '--out', at('adapter'));
    const tuned = ['export', '--model', demoBaseDir, '--gguf', 'f32', '--adapter', at('adapter')];
    const { code, stdout } = await engine(tuned, '--name', 'ward', '--out', at('f32.gguf'), '--force');
    expect(code).toBe(0);
    expect(stdout).toMatch(/^[\d.]+ MiB in .*f32\.gguf: qwen2, f32, .*\nparity over \d+ tokens: KL /);
    expect(readFileSync(at('f32.gguf')).includes('ward')).toBe(true);
  });

  test('refuses what it cannot write, and leaves nothing', async () => {
    const dir = tempDir();
    const model = ['--model', goldenModel('llama3')];
    const out = join(dir, 'out');
    const cases: [args: (string | string[])[], words: RegExp][] = [
      [[model, '--out', out], /name what to write: --merge or --gguf TYPE/],
      [[model, '--out', out, '--merge'], /name it by --adapter/],
      [[model, '--out', out, '--gguf', 'q2_k'], /'q2_k' is invalid.*f32, f16, q8_0, q4_0, q4_k_m/],
      [[model, '--out', out, '--gguf', 'f16', '--merge'], /cannot be used with option/],
      [[model, '--out', dir, '--gguf', 'f16'], /is a folder; name a file/],
      [[model, '--out', out, '--gguf', 'f16', '--adapter', dir], /has no adapter_config\.json/],
    ];
    for (const [args, words] of cases) {
      const { code, stderr } = await engine('export', ...args);
      expect(stderr).toMatch(words);
      expect(code).toBe(2);
    }
    expect(readdirSync(dir)).toEqual([]);
  });

  test('refuses an adapter of another base, and leaves nothing', async () => {
    const dir = tempDir();
    const file = writeSequences(join(dir, 's.json'), [[1, 2, 3]]);
    const adapter = join(dir, 'adapter');
    await engineJson('train', '--model', goldenModel('gemma'), '--sequences', file, '--out', adapter);
    const { code, stderr } = await engine([
      'export',
      '--merge',
      '--model',
      goldenModel('qwen2_yarn'),
      '--adapter',
      adapter,
      '--out',
      join(dir, 'merged'),
    ]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/trained on another base/);
    expect(readdirSync(dir).sort()).toEqual(['adapter', 's.json']);
  });
});
