import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { readMesh } from '@medmesh/cli/mesh';
import { repositoryRoot, spawnProcess, tempDir, waitFor } from '@medmesh/testkit';
import { expect, test } from 'vitest';

const state = join(tempDir('up-and-down'), 'state');
const recordPath = join(state, 'run', 'mesh.json');

const start = (...args: string[]) =>
  spawnProcess({
    command: join(repositoryRoot, 'medmesh'),
    args: ['--state', state, ...args],
    env: { MEDMESH_ADDRESS: undefined, OTEL_EXPORTER_OTLP_ENDPOINT: undefined },
  });
const run = async (...args: string[]) => {
  const running = await start(...args);
  return { ...(await running.exited), stdout: running.stdout(), stderr: running.stderr() };
};

/** Everything that `up` started, by what stands in their command lines. */
const left = async () => {
  const ps = await spawnProcess({ command: 'ps', args: ['-eo', 'pid,args'] });
  await ps.exited;
  return ps.lines().filter((line) => line.includes(state) && !/vitest|ps -eo/.test(line));
};

test('down stops a mesh and what keeps it alive: nothing of it comes back', { timeout: 120_000 }, async () => {
  expect(await run('up', '--port', '0')).toMatchObject({ code: 0 });
  expect((await left()).length).toBeGreaterThan(0);
  expect(await run('down')).toMatchObject({ code: 0, stdout: expect.stringContaining('stopped') });
  // Longer than the pause before an ended process is started again.
  await sleep(500);
  expect(await left()).toEqual([]);
  expect(await readMesh(state)).toBeUndefined();
  expect(existsSync(recordPath)).toBe(false);
  expect(await run('down')).toMatchObject({ code: 0, stdout: expect.stringContaining('nothing runs') });
});

test('down stops a mesh that is still starting, beside which no other is started', {
  timeout: 120_000,
}, async () => {
  const up = await start('up', '--port', '0');
  await waitFor(() => readFileSync(recordPath, 'utf8'), { what: 'the record of the mesh' });
  expect(await run('up', '--port', '0')).toMatchObject({ code: 2, stderr: expect.stringContaining('is starting') });
  expect(await run('down')).toMatchObject({ code: 0, stdout: expect.stringContaining('stopped') });
  expect((await up.exited).code).not.toBe(0);
  await sleep(500);
  expect(await left()).toEqual([]);
  expect(existsSync(recordPath)).toBe(false);
});
