import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { sharedInputsMissing, spawnProcess, tempDir } from '@medmesh/testkit';
import { describe, expect, test } from 'vitest';
import {
  engine,
  engineJson,
  engineLines,
  goldenModel,
  medmeshPath,
  readFloats,
  relativeError,
  sharedGolden,
  writeSequences,
} from '../../../test/engine-command.ts';

type Reference = {
  seqs: number[][];
  'qlora_losses_5_adamw_steps_clip1.0': number[];
  qlora_grad_norms: number[];
};

const maskFirst = (sequences: readonly number[][], count: number): number[][] =>
  sequences.map((row) => row.map((_, i) => (i < count ? 0 : 1)));

const lines = (stdout: string) =>
  stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as { step: number; loss: number; grad_norm: number });

describe('engine train', { timeout: 120_000 }, () => {
  for (const name of ['qwen2_untied', 'qwen2_tied', 'qwen3']) {
    const golden = sharedGolden(name);
    test.skipIf(golden === undefined)(
      `takes the five QLoRA steps that PEFT, bitsandbytes and torch take: ${name}${golden === undefined ? ` (${sharedInputsMissing})` : ''}`,
      async () => {
        const dir = tempDir();
        const modelDir = golden as string;
        const reference = JSON.parse(readFileSync(join(modelDir, 'reference.json'), 'utf8')) as Reference;
        const file = writeSequences(join(dir, 's.json'), reference.seqs, maskFirst(reference.seqs, 6));
        const [out, gradients] = [join(dir, 'adapter'), join(dir, 'gradients.safetensors')];
        const { code, stdout, stderr } = await engine(
          ['train', '--model', modelDir, '--quantize', 'nf4', '--adapter', join(modelDir, 'adapter_init')],
          ['--sequences', file, '--steps', '5', '--lr', '1e-3', '--optimizer', 'adamw', '--weight-decay', '0.01'],
          ['--clip', '1.0', '--dtype', 'f32', '--out', out, '--save-grads', gradients],
        );
        expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
        const steps = lines(stdout);
        expect(steps.map((step) => step.step)).toEqual([1, 2, 3, 4, 5]);
        steps.forEach((step, i) => {
          expect(step.loss).toBeCloseTo(reference['qlora_losses_5_adamw_steps_clip1.0'][i] as number, 4);
          const norm = reference.qlora_grad_norms[i] as number;
          expect(Math.abs(step.grad_norm - norm) / norm).toBeLessThan(1e-4);
        });
        const made = await readFloats(gradients);
        const expectedGradients = await readFloats(join(modelDir, 'lora_grads_step0.safetensors'));
        expect(made.size).toBe(expectedGradients.size);
        for (const [tensor, { values }] of expectedGradients)
          expect(relativeError(made.get(`base_model.model.${tensor}`)?.values as Float32Array, values)).toBeLessThan(
            1e-4,
          );
        const weights = await readFloats(join(out, 'adapter_model.safetensors'));
        const after = await readFloats(join(modelDir, 'adapter_after5', 'adapter_model.safetensors'));
        expect([...weights.keys()].sort()).toEqual([...after.keys()].sort());
        expect([...made.keys()].sort()).toEqual([...after.keys()].sort());
        for (const [tensor, { values }] of after)
          expect(relativeError(weights.get(tensor)?.values as Float32Array, values), tensor).toBeLessThan(1e-4);
      },
    );
  }

  test('starts a new adapter of the shape that is asked for, and continues one that exists', async () => {
    const dir = tempDir();
    const model = goldenModel('qwen3');
    const file = writeSequences(join(dir, 's.json'), [
      [5, 6, 7, 8, 9, 10],
      [11, 12, 13],
    ]);
    const common = ['--model', model, '--sequences', file, '--dtype', 'f32', '--lr', '1e-2'];
    const first = await engineLines(
      ['train', ...common, '--out', join(dir, 'a'), '--steps', '3', '--rank', '4', '--alpha', '6', '--rslora'],
      ['--target', 'q_proj', 'up_proj'],
    );
    expect(first).toHaveLength(3);
    expect(first[0]).toMatchObject({ step: 1, tokens: 9, trainable_tokens: 7, learning_rate: 0.01, skipped: false });
    const config = (name: string) => JSON.parse(readFileSync(join(dir, name, 'adapter_config.json'), 'utf8')) as object;
    expect(config('a')).toMatchObject({
      r: 4,
      lora_alpha: 6,
      use_rslora: true,
      target_modules: ['q_proj', 'up_proj'],
      base_model_name_or_path: model,
    });
    const more = await engineLines([
      'train',
      ...common,
      '--out',
      join(dir, 'b'),
      '--adapter',
      join(dir, 'a'),
      '--optimizer',
      'adamw_8bit',
    ]);
    expect(more).toHaveLength(1);
    expect(more[0]?.['loss']).toBeLessThan(first[2]?.['loss'] as number);
    expect(config('b')).toMatchObject({ r: 4, lora_alpha: 6, use_rslora: true });
  });

  test('a batch larger than what is computed at once has the loss of all its tokens', async () => {
    const dir = tempDir();
    const rows = Array.from({ length: 90 }, (_, r) => Array.from({ length: 100 }, (_, i) => (7 * i + 13 * r) % 96));
    const mask = rows.map((row, r) => row.map((_, i) => (i > r ? 1 : 0)));
    const step = async (name: string, sequences: number[][], lossMask: number[][]) => {
      const file = writeSequences(join(dir, `${name}.json`), sequences, lossMask);
      const args = ['--model', goldenModel('llama3'), '--dtype', 'f32', '--rank', '2', '--sequences', file];
      const line = await engineJson('train', ...args, '--out', join(dir, name));
      return line as { loss: number; trainable_tokens: number };
    };
    const all = await step('all', rows, mask);
    const halves = [
      await step('h1', rows.slice(0, 30), mask.slice(0, 30)),
      await step('h2', rows.slice(30), mask.slice(30)),
    ];
    const tokens = halves.reduce((sum, half) => sum + half.trainable_tokens, 0);
    expect(all.trainable_tokens).toBe(tokens);
    const loss = halves.reduce((sum, half) => sum + half.loss * half.trainable_tokens, 0) / tokens;
    expect(Math.abs(all.loss - loss)).toBeLessThan(1e-6 * loss);
  });

  test('refuses bad input with exit code 2, says what was seen, and writes nothing', async () => {
    const dir = tempDir();
    const model = goldenModel('llama3');
    const good = writeSequences(join(dir, 'good.json'), [[1, 2, 3]]);
    const out = join(dir, 'out');
    mkdirSync(join(dir, 'notes'));
    writeFileSync(join(dir, 'notes', 'diary'), 'x');
    const of = (file: string) => ['--model', model, '--sequences', file, '--out', out];
    const cases: [args: string[], words: RegExp][] = [
      [[...of(good), '--steps', '0'], /'--steps <n>' argument '0' is invalid.*1 or more/],
      [[...of(good), '--lr', 'fast'], /argument 'fast' is invalid/],
      [[...of(good), '--optimizer', 'sgd'], /'sgd' is invalid.*adamw, adamw_8bit/],
      [[...of(good), '--adapter', dir, '--rank', '4'], /'--rank <r>' cannot be used with option '--adapter/],
      [[...of(good), '--target', 'w_proj'], /w_proj/],
      [
        of(writeSequences(join(dir, 'mask.json'), [[1, 2, 3]], [[0, 1]])),
        /loss_mask\[0\] has 2 entries, but its sequence has 3 token ids/,
      ],
      [of(writeSequences(join(dir, 'none.json'), [[1, 2]], [[1, 0]])), /leaves no token to be predicted/],
      [[...of(good), '--out', dir], /exists and is not empty; add --force/],
      [[...of(good), '--out', join(dir, 'notes'), '--force'], /no earlier result.*adapter_config\.json/],
      [[...of(good), '--out', model, '--force'], /would replace the input/],
      [[...of(good), '--save-grads', join(dir, 'no/g')], /does not exist/],
    ];
    for (const [args, words] of cases) {
      const { code, stdout, stderr } = await engine('train', ...args);
      expect({ args, code, stdout }).toEqual({ args, code: 2, stdout: '' });
      expect(stderr).toMatch(words);
    }
    expect(readdirSync(dir).sort()).toEqual(['good.json', 'mask.json', 'none.json', 'notes']);
  });

  test('Ctrl-C ends it with 130 and leaves neither adapter nor gradients', async () => {
    const dir = tempDir();
    const file = writeSequences(join(dir, 's.json'), [Array.from({ length: 200 }, (_, i) => i % 96)]);
    const common = ['train', '--model', goldenModel('llama3'), '--sequences', file, '--steps', '1000000'];
    const running = await spawnProcess({
      command: medmeshPath,
      args: ['engine', ...common, '--out', join(dir, 'adapter'), '--save-grads', join(dir, 'gradients')],
      ready: /"step":3,/,
      readyTimeoutMs: 60_000,
    });
    running.signal('SIGINT');
    expect(await running.exited).toMatchObject({ code: 130 });
    expect(running.stderr()).toBe('medmesh: interrupted\n');
    expect(readdirSync(dir)).toEqual(['s.json']);
  });
});
