import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { runProcess, spawnProcess } from './spawn-process.ts';
import { tempDir } from './temp-dir.ts';
import { waitFor } from './wait-for.ts';

const isAlive = (pid: number) => {
  try {
    process.kill(pid, 0);
    // A killed process that nobody has waited for yet still answers; its state then is Z.
    return !/^State:\s*Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};

test('a start waits for the ready line and gives its groups', async () => {
  const running = await spawnProcess({
    command: 'sh',
    args: ['-c', 'echo one; sleep 0.05; echo listening on 4711; sleep 60'],
    ready: /listening on (\d+)/,
  });
  expect(running.ready?.[1]).toBe('4711');
  expect(running.lines()).toEqual(['one', 'listening on 4711']);
  expect(await running.stop()).toEqual({ code: null, signal: 'SIGTERM' });
});

test('a process that ends before it is ready is an error with what it printed', async () => {
  const start = spawnProcess({ command: 'sh', args: ['-c', 'echo no such file >&2; exit 3'], ready: /never/ });
  await expect(start).rejects.toThrow(/exited with 3 before a line matched \/never\/:\nno such file/);
  await expect(spawnProcess({ command: '/no/such/program' })).rejects.toThrow('cannot start /no/such/program');
});

test('killing a process ends what it started too', async () => {
  const running = await spawnProcess({
    command: 'sh',
    args: ['-c', 'sleep 60 & echo child $!; wait'],
    ready: /child (\d+)/,
  });
  const child = Number(running.ready?.[1]);
  expect(isAlive(child)).toBe(true);
  expect(await running.kill()).toEqual({ code: null, signal: 'SIGKILL' });
  await waitFor(() => !isAlive(child), { what: 'the grandchild to end' });
});

test('stop turns to SIGKILL when SIGTERM is ignored', async () => {
  const running = await spawnProcess({
    command: 'sh',
    args: ['-c', 'trap "" TERM; echo up; while :; do sleep 0.05; done'],
    ready: /up/,
    stopTimeoutMs: 200,
  });
  expect(await running.stop()).toEqual({ code: null, signal: 'SIGKILL' });
});

test('processes and folders do not outlive the process that made them, however it ends', async () => {
  for (const ending of ['process.exit(0)', "process.kill(process.pid, 'SIGKILL')", "throw new Error('oops')"]) {
    const source = `
      import { spawnProcess, tempDir } from ${JSON.stringify(join(import.meta.dirname, 'index.ts'))};
      const { pid } = await spawnProcess({ command: 'sleep', args: ['60'] });
      const done = await spawnProcess({ command: 'true' });
      await done.exited;
      console.log(JSON.stringify({ pid, folders: [tempDir(), tempDir()] }));
      setTimeout(() => { ${ending} }, 50);`;
    const running = await spawnProcess({
      command: process.execPath,
      args: ['--input-type=module', '-e', source],
      ready: /^{.*}$/,
    });
    const { pid, folders } = JSON.parse(running.ready![0]) as { pid: number; folders: string[] };
    expect(isAlive(pid)).toBe(true);
    await running.exited;
    await waitFor(() => !isAlive(pid), { what: `the child to end after ${ending}` });
    await waitFor(() => !folders.some((folder) => existsSync(folder)), { what: 'the folders to go' });
  }
});

test('a program that fails is an error with its output', async () => {
  expect(await runProcess({ command: 'echo', args: ['hello'] })).toBe('hello\n');
  await expect(runProcess({ command: 'sh', args: ['-c', 'echo bad; exit 4'] })).rejects.toThrow(/exited with 4:\nbad/);
  expect(tempDir()).not.toBe(tempDir());
});
