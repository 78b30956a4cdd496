import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readSafetensors } from '@medmesh/engine';
import { sharedInputsMissing, tempDir } from '@medmesh/testkit';
import { describe, expect, test } from 'vitest';
import { engine, engineJson, goldenModel, sharedGolden, writeSequences } from '../../../test/engine-command.ts';

const golden = sharedGolden('qwen2_untied');

describe('engine quantize', { timeout: 120_000 }, () => {
  test('writes a folder that scores, bit for bit, as the model quantized while loading', async () => {
    const dir = tempDir();
    const model = goldenModel('mistral');
    const file = writeSequences(join(dir, 's.json'), [[3, 5, 7, 11, 13, 17, 19]]);
    const made = await engineJson('quantize', '--model', model, '--out', join(dir, 'nf4'));
    expect(made).toEqual({
      out: join(dir, 'nf4'),
      weight_bytes: expect.any(Number),
      tensors: expect.any(Number),
      double_quant: true,
    });
    for (const dtype of ['f32', 'bf16']) {
      const score = ['score', '--dtype', dtype, '--sequences', file, '--out'];
      await engineJson(...score, join(dir, `a-${dtype}`), '--model', model, '--quantize', 'nf4');
      await engineJson(...score, join(dir, `b-${dtype}`), '--model', join(dir, 'nf4'));
      expect(readFileSync(join(dir, `a-${dtype}`)).equals(readFileSync(join(dir, `b-${dtype}`)))).toBe(true);
    }
  });

  test.skipIf(golden === undefined)(
    `writes the codes and scales of bitsandbytes, doubly quantized or not${golden === undefined ? ` (${sharedInputsMissing})` : ''}`,
    async () => {
      const dir = tempDir();
      const vectors = await readSafetensors(join(golden as string, 'nf4_layer0.safetensors'));
      for (const [kind, flags] of [
        ['dq', []],
        ['sq', ['--no-double-quant']],
      ] as const) {
        const out = join(dir, kind);
        await engineJson('quantize', '--model', golden as string, '--out', out, ...flags);
        const tensors = await readSafetensors(join(out, 'model.safetensors'));
        const packed = [...vectors.keys()].filter((name) => name.endsWith(`.${kind}.packed`));
        expect(packed).toHaveLength(2);
        for (const name of packed) {
          const weight = name.slice(0, -`.${kind}.packed`.length);
          expect(tensors.get(weight)?.data).toEqual(vectors.get(name)?.data);
          expect(tensors.get(`${weight}.absmax`)?.data).toEqual(vectors.get(`${weight}.${kind}.absmax`)?.data);
          const state = tensors.get(`${weight}.quant_state.bitsandbytes__nf4`);
          expect(JSON.parse(Buffer.from(state?.data ?? []).toString())).toMatchObject({
            quant_type: 'nf4',
            blocksize: 64,
          });
        }
        const config = JSON.parse(readFileSync(join(out, 'config.json'), 'utf8')) as Record<string, unknown>;
        expect(config['quantization_config']).toMatchObject({
          load_in_4bit: true,
          bnb_4bit_quant_type: 'nf4',
          bnb_4bit_use_double_quant: kind === 'dq',
        });
      }
    },
  );

  test('replaces an earlier result with --force, and nothing else', async () => {
    const dir = tempDir();
    const model = goldenModel('llama3');
    const quantize = (out: string, ...more: string[]) => engine('quantize', '--model', model, '--out', out, ...more);
    mkdirSync(join(dir, 'empty'));
    expect(await quantize(join(dir, 'empty'))).toMatchObject({ code: 0, stderr: '' });
    const refused = async (words: RegExp, out: string, ...more: string[]) => {
      const { code, stderr } = await quantize(out, ...more);
      expect(code).toBe(2);
      expect(stderr).toMatch(words);
    };
    await refused(/exists and is not empty; add --force/, join(dir, 'empty'));
    writeFileSync(join(dir, 'empty', 'stray'), 'x');
    expect(await quantize(join(dir, 'empty'), '--force')).toMatchObject({ code: 0 });
    expect(readdirSync(join(dir, 'empty')).sort()).toEqual(['config.json', 'model.safetensors']);
    await refused(/no earlier result/, dir, '--force');
    await refused(/would replace the input/, model, '--force');
    await refused(/is a file; name a folder/, join(model, 'config.json'));
    const again = await engine('quantize', '--model', join(dir, 'empty'), '--out', join(dir, 'twice'));
    expect(again).toMatchObject({ code: 2 });
    expect(again.stderr).toMatch(/already quantized/);
    expect(readdirSync(dir)).toEqual(['empty']);
  });
});
