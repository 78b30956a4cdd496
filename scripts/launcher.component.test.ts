import { cpSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { spawnProcess } from '../libs/testkit/src/spawn-process.ts';
import { tempDir } from '../libs/testkit/src/temp-dir.ts';

const launcher = join(import.meta.dirname, '../medmesh');

async function run(command: string, args: string[], env: Record<string, string | undefined> = {}) {
  const running = await spawnProcess({ command, args, env, cwd: tempDir() });
  const { code } = await running.exited;
  return { code, stdout: running.stdout(), stderr: running.stderr() };
}

test('before the set-up the launcher says what to run', async () => {
  const folder = tempDir('launcher');
  cpSync(launcher, join(folder, 'medmesh'));
  const { code, stderr } = await run(join(folder, 'medmesh'), ['status']);
  expect([code, stderr]).toEqual([
    1,
    "medmesh is not set up yet: run 'npm run quickstart', or 'sh scripts/setup.sh' for the set-up alone\n",
  ]);
});

test('the launcher runs the command of its own folder, through links too, with traces started first', async () => {
  const folder = tempDir('launcher');
  cpSync(launcher, join(folder, 'medmesh'));
  for (const name of ['node_modules/.bin', 'libs/cli/src', 'libs/telemetry/src', 'elsewhere']) {
    mkdirSync(join(folder, name), { recursive: true });
  }
  symlinkSync(process.execPath, join(folder, 'node_modules/.bin/node'));
  writeFileSync(join(folder, 'libs/telemetry/src/register.ts'), "globalThis.traced = 'traced';");
  writeFileSync(
    join(folder, 'libs/cli/src/main.ts'),
    "console.log(globalThis.traced ?? 'not traced', ...process.argv.slice(2)); process.exitCode = 3;",
  );
  const link = join(folder, 'elsewhere/mm');
  symlinkSync(join(folder, 'medmesh'), link);

  const traced = await run(link, ['chat', 'two words'], { OTEL_SDK_DISABLED: undefined });
  expect(traced).toEqual({ code: 3, stdout: 'traced chat two words\n', stderr: '' });
  const untraced = await run(link, [], { OTEL_SDK_DISABLED: 'true' });
  expect(untraced.stdout).toBe('not traced\n');
});

test('npm run quickstart sets up and then runs the quickstart', async () => {
  const { code, stdout } = await run('npm', ['--prefix', join(launcher, '..'), 'run', 'quickstart', '--', '--help']);
  expect([code, stdout]).toEqual([0, expect.stringContaining('Usage: medmesh quickstart')]);
});
