import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { sharedInputsMissing, spawnProcess, tempDir, waitFor } from '@medmesh/testkit';
import { describe, expect, test } from 'vitest';
import {
  engine,
  engineJson,
  goldenModel,
  medmeshPath,
  readFloats,
  relativeToScale,
  sharedGolden,
  writeSequences,
} from '../../../test/engine-command.ts';

const golden = sharedGolden('qwen2_untied');

describe('engine score', { timeout: 120_000 }, () => {
  for (const family of ['llama3', 'mistral', 'qwen3', 'gemma2', 'gemma3'])
    test(`writes the logits that transformers gives: ${family}`, async () => {
      const dir = tempDir();
      const modelDir = goldenModel(family);
      const { sequences } = JSON.parse(readFileSync(join(modelDir, 'reference.json'), 'utf8')) as {
        sequences: number[][];
      };
      const file = writeSequences(join(dir, 's.json'), sequences);
      const out = join(dir, 'logits.safetensors');
      const summary = await engineJson([
        'score',
        '--model',
        modelDir,
        '--dtype',
        'f32',
        '--sequences',
        file,
        '--out',
        out,
      ]);
      expect(summary).toEqual({ out, sequences: 3, tokens: sequences.flat().length, vocab_size: 96 });
      const [made, expected] = [await readFloats(out), await readFloats(join(modelDir, 'reference.safetensors'))];
      expect([...made.keys()].sort()).toEqual([...expected.keys()].sort());
      for (const [name, { shape, values }] of expected) {
        expect(made.get(name)?.shape).toEqual(shape);
        expect(relativeToScale(made.get(name)?.values ?? new Float32Array(), values), name).toBeLessThan(2e-5);
      }
    });

  test.skipIf(golden === undefined)(
    `adds an adapter to an NF4 base as PEFT and bitsandbytes do${golden === undefined ? ` (${sharedInputsMissing})` : ''}`,
    async () => {
      const dir = tempDir();
      const modelDir = golden as string;
      const { seqs } = JSON.parse(readFileSync(join(modelDir, 'reference.json'), 'utf8')) as { seqs: number[][] };
      const file = writeSequences(join(dir, 's.json'), seqs);
      const reference = await readFloats(join(modelDir, 'reference.safetensors'));
      const scored = async (name: string, ...more: string[]) => {
        const out = join(dir, name);
        const { code, stderr } = await engine([
          'score',
          '--model',
          modelDir,
          '--dtype',
          'f32',
          '--sequences',
          file,
          '--out',
          out,
          ...more,
        ]);
        expect(code, stderr).toBe(0);
        return (await readFloats(out)).get('logits_0')?.values ?? new Float32Array();
      };
      const expected = (name: string) => reference.get(name)?.values ?? new Float32Array();
      expect(relativeToScale(await scored('plain'), expected('logits_0'))).toBeLessThan(2e-5);
      const nf4 = await scored('nf4', '--quantize', 'nf4');
      expect(relativeToScale(nf4, expected('logits_0_nf4dq'))).toBeLessThan(2e-5);
      const adapter = join(modelDir, 'adapter_init');
      const tuned = await scored('tuned', '--quantize', 'nf4', '--adapter', adapter);
      expect(relativeToScale(tuned, expected('logits_0_nf4dq_lora'))).toBeLessThan(2e-5);
    },
  );

  test('refuses bad input with exit code 2, says what was seen, and writes nothing', async () => {
    const dir = tempDir();
    const model = goldenModel('llama3');
    const good = writeSequences(join(dir, 'good.json'), [[1, 2, 3]]);
    const out = join(dir, 'out.safetensors');
    writeFileSync(join(dir, 'taken.safetensors'), 'something');
    const cases: [args: string[], words: RegExp][] = [
      [['--model', model, '--sequences', good], /required option '--out <file>' not specified/],
      [['--model', model, '--sequences', good, '--out', out, '--beam', '4'], /unknown option '--beam'/],
      [['--model', model, '--sequences', good, '--out', out, '--dtype', 'f16'], /'f16' is invalid.*f32, bf16/],
      [['--model', join(dir, 'none'), '--sequences', good, '--out', out], /none does not exist/],
      [['--model', dir, '--sequences', good, '--out', out], /has no config\.json; a Hugging Face model folder/],
      [['--model', good, '--sequences', good, '--out', out], /good\.json is a file; a Hugging Face model folder/],
      [['--model', model, '--sequences', join(dir, 'no.json'), '--out', out], /no\.json does not exist/],
      [
        ['--model', model, '--sequences', writeSequences(join(dir, 'id.json'), [[1], [5, 96]]), '--out', out],
        /sequences\[1\]\[1\] is 96, outside the vocabulary; the model's ids go from 0 to 95/,
      ],
      [['--model', model, '--sequences', good, '--out', join(dir, 'a/b')], /a, the folder of .*a\/b, does not exist/],
      [['--model', model, '--sequences', good, '--out', join(dir, 'taken.safetensors')], /exists; add --force/],
      [['--model', model, '--sequences', good, '--out', good, '--force'], /would replace the input/],
      [['--model', model, '--sequences', good, '--out', out, '--adapter', model], /has no adapter_config\.json/],
      [['--model', model, '--sequences', good, '--out', out, '--device', 'abacus'], /device is "abacus"/],
    ];
    for (const [args, words] of cases) {
      const { code, stdout, stderr } = await engine('score', ...args);
      expect({ args, code, stdout }).toEqual({ args, code: 2, stdout: '' });
      expect(stderr).toMatch(words);
    }
    expect(readdirSync(dir).sort()).toEqual(['good.json', 'id.json', 'taken.safetensors']);
  });

  test('replaces a result with --force, and an empty file without', async () => {
    const dir = tempDir();
    const file = writeSequences(join(dir, 's.json'), [[1, 2, 3]]);
    const out = join(dir, 'out.safetensors');
    const args = ['score', '--model', goldenModel('llama3'), '--sequences', file, '--out', out];
    writeFileSync(out, '');
    expect(await engine(...args)).toMatchObject({ code: 0, stderr: '' });
    writeFileSync(out, 'an older result');
    expect(await engine(...args, '--force')).toMatchObject({ code: 0 });
    expect((await readFloats(out)).get('logits_0')?.shape).toEqual([3, 96]);
  });

  test('Ctrl-C ends it with 130 and leaves no part of a file', async () => {
    const dir = tempDir();
    const file = writeSequences(
      join(dir, 's.json'),
      Array.from({ length: 20_000 }, () => Array.from({ length: 100 }, (_, i) => i % 96)),
    );
    const out = join(dir, 'out.safetensors');
    const running = await spawnProcess({
      command: medmeshPath,
      args: ['engine', 'score', '--model', goldenModel('llama3'), '--sequences', file, '--out', out],
    });
    await waitFor(() => readdirSync(dir).length > 1, { what: 'the file to be started', timeoutMs: 60_000 });
    running.signal('SIGINT');
    expect(await running.exited).toMatchObject({ code: 130 });
    expect(running.stderr()).toBe('medmesh: interrupted\n');
    expect(existsSync(out)).toBe(false);
    expect(readdirSync(dir)).toEqual(['s.json']);
  });
});
