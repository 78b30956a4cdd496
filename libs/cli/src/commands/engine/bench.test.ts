import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { repositoryRoot, tempDir } from '@medmesh/testkit';
import { describe, expect, test } from 'vitest';
import { engine, engineLines } from '../../../test/engine-command.ts';

const engineDir = join(repositoryRoot, 'libs/engine');

/** Whether the benchmark was built from the sources as they are: building it here would take minutes. */
function isBuilt(): boolean {
  const program = join(engineDir, 'build/release/engine-bench');
  if (!existsSync(program)) return false;
  const builtMs = statSync(program).mtimeMs;
  const sources = ['native', 'bench', 'CMakeLists.txt'].flatMap((name) => {
    const path = join(engineDir, name);
    if (!statSync(path).isDirectory()) return [path];
    return readdirSync(path, { recursive: true }).map((entry) => join(path, String(entry)));
  });
  return sources.every((path) => statSync(path).mtimeMs <= builtMs);
}
const built = isBuilt();

describe('engine bench', { timeout: 600_000 }, () => {
  test.skipIf(!built)('measures on a small model, a line of JSON for each measurement', async () => {
    const dir = tempDir();
    const args = ['bench', '--shape', 'tiny', '--tokens', '32', '--new-tokens', '4', '--repeat', '1', '--dir', dir];
    const lines = await engineLines(args);
    expect(lines.map((line) => line['bench'])).toEqual(['quantize', 'step', 'prefill', 'decode']);
    for (const line of lines)
      expect(line).toMatchObject({
        shape: 'tiny',
        seconds: expect.any(Number),
        machine: { threads: expect.any(Number) },
      });
    expect(readdirSync(dir).filter((name) => name.includes('quantize'))).toEqual([]);
    const text = await engine(args, '--threads', '1', '--dtype', 'f32');
    expect(text.stdout.trim().split('\n')).toHaveLength(4);
    expect(text.stdout).toMatch(/^decode\s+[\d.]+ ms\s+[\d.]+ tok\/s {2}peak/m);
  });

  test('refuses what it does not measure', async () => {
    const { code, stderr } = await engine('bench', 'speed');
    expect(code).toBe(2);
    expect(stderr).toMatch(/'speed' is invalid.*quantize, step, prefill, decode/);
  });
});
