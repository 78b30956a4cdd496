import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { readMesh } from '@medmesh/cli/mesh';
import { repositoryRoot, spawnProcess, waitFor } from '@medmesh/testkit';
import { expect, test } from 'vitest';

const stateDir = join(repositoryRoot, '.medmesh', 'quickstart');
const quickstart = (...args: string[]) =>
  spawnProcess({
    command: join(repositoryRoot, 'medmesh'),
    args: ['--json', 'quickstart', '--port', '0', ...args],
    stopTimeoutMs: 60_000,
  });

/** Processes that live in the quickstart's folder: their environment or command line names it. */
function processesOfQuickstart(): number[] {
  const names = (path: string) => {
    try {
      return readFileSync(path, 'latin1').includes(stateDir);
    } catch {
      return false;
    }
  };
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry) && (names(`/proc/${entry}/environ`) || names(`/proc/${entry}/cmdline`)))
    .map(Number);
}

test('the quickstart fine-tunes the demonstration base so that it answers what it could not, and stops all it started', {
  timeout: 240_000,
}, async () => {
  const running = await quickstart('--questions', '24');
  const { code } = await running.exited;
  expect(code, running.stderr()).toBe(0);
  const summary = JSON.parse(running.stdout().trim().split('\n').at(-1)!) as {
    base: { accuracy: number };
    adapter: { accuracy: number };
    traceId: string;
  };
  expect(summary.traceId).toMatch(/^[0-9a-f]{32}$/);
  // Measured over all 80 questions: 0 % and 87.5 %. A quarter of them scatters.
  expect(summary.base.accuracy).toBeLessThan(0.1);
  expect(summary.adapter.accuracy).toBeGreaterThan(0.6);
  expect(await readMesh(stateDir)).toBeUndefined();
  expect(processesOfQuickstart()).toEqual([]);
});

test.each([
  ['while it starts', 2],
  ['in the middle', 7],
])('Ctrl-C %s leaves nothing running', { timeout: 120_000 }, async (_, processCount) => {
  const running = await quickstart();
  await waitFor(() => processesOfQuickstart().length >= processCount, { timeoutMs: 60_000, what: 'the processes' });
  running.signal('SIGINT');
  const { code } = await running.exited;
  expect(code).toBe(130);
  expect(processesOfQuickstart()).toEqual([]);
});

test('a second Ctrl-C ends at once, and leaves nothing running either', { timeout: 120_000 }, async () => {
  const running = await quickstart();
  await waitFor(() => processesOfQuickstart().length >= 7, { timeoutMs: 60_000, what: 'the processes' });
  running.signal('SIGINT');
  running.signal('SIGINT');
  const { code } = await running.exited;
  expect(code).toBe(130);
  await waitFor(() => processesOfQuickstart().length === 0, { timeoutMs: 30_000, what: 'the processes to end' });
});
