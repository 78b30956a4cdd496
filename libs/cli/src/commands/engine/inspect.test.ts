import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tempDir } from '@medmesh/testkit';
import { describe, expect, test } from 'vitest';
import { engine, engineJson, goldenModel, medmeshPath } from '../../../test/engine-command.ts';

const weights = join(goldenModel('llama3'), 'model.safetensors');

describe('engine inspect', { timeout: 60_000 }, () => {
  test('names every tensor of a file with the type, shape and place its header gives', async () => {
    const bytes = readFileSync(weights);
    const headerLength = Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.subarray(8, 8 + headerLength).toString()) as Record<
      string,
      { dtype: string; shape: number[]; data_offsets: [number, number] }
    >;
    const info = await engineJson('inspect', weights);
    const { __metadata__, ...tensors } = header;
    expect(info['metadata']).toEqual(__metadata__ ?? {});
    const expected = Object.entries(tensors).map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [begin, end],
        },
      ]) => ({
        name,
        dtype,
        shape,
        byte_offset: 8 + headerLength + begin,
        byte_length: end - begin,
      }),
    );
    const byName = (a: { name: string }, b: { name: string }) => (a.name < b.name ? -1 : 1);
    expect((info['tensors'] as typeof expected).toSorted(byName)).toEqual(expected.toSorted(byName));
  });

  test('shows people a table, and a model folder as what it is', async () => {
    const table = await engine('inspect', weights);
    expect(table.stdout).toMatch(/^NAME\s+DTYPE\s+SHAPE\s+SIZE\n/);
    expect(table.stdout).toMatch(/model\.norm\.weight\s+BF16\s+\[32\]\s+64 B/);
    const folder = await engineJson('inspect', goldenModel('llama3'));
    expect(folder).toMatchObject({ model_type: 'llama', vocab_size: 96, layers: 2, quantization: 'none' });
  });

  test('refuses what is no safetensors file with exit code 2 and the reason', async () => {
    const dir = tempDir();
    const refused = async (path: string, words: RegExp) => {
      const { code, stdout, stderr } = await engine('inspect', path);
      expect({ path, code, stdout }).toEqual({ path, code: 2, stdout: '' });
      expect(stderr).toMatch(words);
    };
    await refused(join(dir, 'absent.safetensors'), /absent\.safetensors does not exist/);
    const original = readFileSync(weights);
    writeFileSync(join(dir, 'cut.safetensors'), original.subarray(0, original.length - 1));
    await refused(join(dir, 'cut.safetensors'), /cut\.safetensors/);
    writeFileSync(join(dir, 'model.bin'), Buffer.from([0x80, 0x02, 0x7d, 0x71, 0x00, 0x2e]));
    await refused(join(dir, 'model.bin'), /is a pickle, which can run code/);
    writeFileSync(join(dir, 'model.pt'), Buffer.from('PK\x03\x04rest of an archive', 'latin1'));
    await refused(join(dir, 'model.pt'), /is a pickle/);
    await refused(dir, /has no config\.json; a Hugging Face model folder/);
    mkdirSync(join(dir, 'torch-only'));
    copyFileSync(join(goldenModel('llama3'), 'config.json'), join(dir, 'torch-only', 'config.json'));
    writeFileSync(join(dir, 'torch-only', 'pytorch_model.bin'), 'x');
    await refused(join(dir, 'torch-only'), /pickle/);
  });

  test('ends quietly when nobody reads its output', () => {
    const pipe = `set -o pipefail; ${medmeshPath} engine inspect ${weights} | true; echo "$?"`;
    const { stdout, stderr } = spawnSync('bash', ['-c', pipe], { encoding: 'utf8' });
    expect(stderr).toBe('');
    expect(['0\n', '141\n']).toContain(stdout);
  });

  test('tells an error as JSON with --json', async () => {
    const { code, stderr } = await engine('inspect', '/nowhere/x.safetensors', '--json');
    expect(code).toBe(2);
    expect(JSON.parse(stderr)).toMatchObject({ error: { code: 'invalid_argument', reason: 'PATH_UNUSABLE' } });
  });
});
