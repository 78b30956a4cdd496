import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { demoBaseDir } from '@medmesh/demo';
import { describe, expect, test } from 'vitest';
import { engine, engineJson, goldenModel } from '../../../test/engine-command.ts';

const prompt = ['--model', demoBaseDir, '--prompt', 'Acute appendicitis'];

describe('engine generate', { timeout: 120_000 }, () => {
  for (const family of ['llama3', 'qwen2_yarn', 'gemma3'])
    test(`chooses the tokens that transformers chooses: ${family}`, async () => {
      const modelDir = goldenModel(family);
      const { sequences, greedy } = JSON.parse(readFileSync(join(modelDir, 'reference.json'), 'utf8')) as {
        sequences: number[][];
        greedy: number[];
      };
      const args = ['--model', modelDir, '--dtype', 'f32', '--tokens', String(sequences[0]), '--ignore-eos'];
      const made = await engineJson('generate', ...args, '--max-tokens', String(greedy.length));
      expect(made).toMatchObject({ tokens: greedy, finish: 'length', prompt_tokens: sequences[0]?.length });
      expect(made).not.toHaveProperty('text');
      const streamed = await engine('generate', ...args, '--max-tokens', '3');
      expect(streamed).toEqual({ code: 0, stdout: `${greedy.slice(0, 3).join(' ')}\n`, stderr: '' });
    });

  test('streams text that ends with the end-of-sequence token or with a stop string, and shows neither', async () => {
    const streamed = await engine('generate', ...prompt);
    expect(streamed).toMatchObject({ code: 0, stderr: '' });
    expect(streamed.stdout).toMatch(/^ is [^<]+\.\n$/);
    const whole = await engineJson('generate', ...prompt);
    expect(whole).toMatchObject({ text: streamed.stdout.slice(0, -1), finish: 'stop' });
    const word = (whole['text'] as string).split(' ')[2] as string;
    const cut = await engineJson('generate', ...prompt, '--stop', word);
    expect(cut).toMatchObject({ text: (whole['text'] as string).split(word)[0], finish: 'stop_string' });
  });

  test('a seed gives the same text again, another seed another', async () => {
    const sampled = async (seed: string) => {
      const args = [...prompt, '--temperature', '2', '--max-tokens', '24', '--seed', seed];
      return (await engineJson('generate', ...args))['text'];
    };
    const first = await sampled('1');
    expect(await sampled('1')).toBe(first);
    expect(await sampled('2')).not.toBe(first);
  });

  test('refuses bad input with exit code 2 and says what was seen', async () => {
    const model = ['--model', goldenModel('llama3')];
    const cases: [args: string[], words: RegExp][] = [
      [model, /give --prompt or --tokens/],
      [[...model, '--prompt', 'x'], /has no tokenizer\.json, so --prompt cannot be read/],
      [[...model, '--tokens', '1,2', '--stop', 'x'], /so --stop has no text to look at/],
      [[...model, '--tokens', '1,two'], /argument '1,two' is invalid/],
      [[...model, '--tokens', '1,2,96'], /--tokens: id 2 is 96, outside the vocabulary/],
      [[...model, '--tokens', '1', '--prompt', 'x'], /cannot be used with option/],
      [[...model, '--tokens', '1', '--top-p', '0'], /argument '0' is invalid/],
      [[...model, '--tokens', '1', '--max-tokens', '-1'], /argument '-1' is invalid/],
      [[...model, '--tokens', '1', 'extra'], /too many arguments/],
      [[...model, '--tokens', Array(129).fill(1).join(',')], /129 tokens; this model's context of 128/],
    ];
    for (const [args, words] of cases) {
      const { code, stdout, stderr } = await engine('generate', ...args);
      expect({ args, code, stdout }).toEqual({ args, code: 2, stdout: '' });
      expect(stderr).toMatch(words);
    }
  });
});
