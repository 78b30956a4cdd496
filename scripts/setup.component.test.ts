import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { spawnProcess } from '../libs/testkit/src/spawn-process.ts';
import { tempDir } from '../libs/testkit/src/temp-dir.ts';

/**
 * Runs setup.sh in an empty folder on a machine made of /usr/bin without the tools named `missing`, and with those of `fake`
 * replaced by scripts. Nothing that installs is reached: each run must end before.
 */
async function runSetup(missing: string[], fake: Record<string, string> = {}, args: string[] = []) {
  const folder = tempDir('setup');
  const programs = join(folder, 'bin');
  mkdirSync(programs);
  mkdirSync(join(folder, 'scripts'));
  copyFileSync(join(import.meta.dirname, 'setup.sh'), join(folder, 'scripts/setup.sh'));
  const installers = ['apt-get', 'sudo', 'pnpm'];
  for (const name of readdirSync('/usr/bin')) {
    if (!missing.includes(name) && !installers.includes(name))
      symlinkSync(join('/usr/bin', name), join(programs, name));
  }
  const scripts = {
    node: 'case $1 in -p) echo true ;; *) echo v20.0.0 ;; esac',
    npm: 'echo "npm was called: $*"; exit 1',
    ...fake,
  };
  for (const [name, script] of Object.entries(scripts)) {
    rmSync(join(programs, name), { force: true });
    if (missing.includes(name)) continue;
    writeFileSync(join(programs, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(programs, name), 0o755);
  }
  const running = await spawnProcess({
    command: 'sh',
    args: [join(folder, 'scripts/setup.sh'), ...args],
    env: { PATH: programs, CXX: undefined },
  });
  const { code } = await running.exited;
  return { code, stderr: running.stderr(), log: () => readFileSync(join(folder, '.cache/setup.log'), 'utf8') };
}

const ready = {
  'nats-server': 'echo nats-server: v2.10.27',
  ninja: 'true',
  cmake: 'echo cmake version 3.25.1',
};

test('a missing compiler is said in one line with the package to install', async () => {
  const { code, stderr } = await runSetup(['c++', 'g++']);
  expect([code, stderr]).toEqual([1, 'medmesh: no C++ compiler found; install one: apt-get install g++\n']);
});

test('a compiler without C++20 is said with its name', async () => {
  const { code, stderr } = await runSetup([], {
    ...ready,
    'c++': 'case $1 in -dumpversion) echo 7 ;; *) exit 1 ;; esac',
  });
  expect([code, stderr]).toEqual([
    1,
    'medmesh: c++ (7) does not compile C++20; install a newer one: apt-get install g++ (12 or newer)\n',
  ]);
});

test('a missing or old cmake is said with the version needed', async () => {
  expect((await runSetup(['cmake'])).stderr).toBe(
    'medmesh: cmake is missing; install it: apt-get install cmake (3.25 or newer)\n',
  );
  const old = await runSetup([], { cmake: 'echo cmake version 3.9.6' });
  expect(old.stderr).toBe('medmesh: cmake is 3.9.6; install 3.25 or newer\n');
});

test('a missing or old Node is said', async () => {
  expect((await runSetup(['node'])).stderr).toBe(
    'medmesh: node or npm is missing; install Node 20 or newer with npm\n',
  );
  const old = await runSetup([], { node: 'case $1 in -p) echo false ;; *) echo v16.3.0 ;; esac' });
  expect(old.stderr).toBe('medmesh: node is v16.3.0; install Node 20 or newer\n');
});

test('another system and another processor are refused by name', async () => {
  const other = (system: string, machine: string) => ({
    uname: `case $1 in -s) echo ${system} ;; -m) echo ${machine} ;; esac`,
  });
  expect((await runSetup([], other('Darwin', 'arm64'))).stderr).toContain('this is Darwin; medmesh runs on Linux');
  expect((await runSetup([], other('Linux', 'riscv64'))).stderr).toContain('this machine is riscv64');
});

test('no way to the npm registry is said in one line, and the log has the details', async () => {
  const json = 'test -e /usr/include/nlohmann/json.hpp';
  const { code, stderr, log } = await runSetup([], {
    ...ready,
    npm: `${json}; echo "npm error code EAI_AGAIN"; exit 1`,
  });
  expect(code).toBe(1);
  expect(stderr).toMatch(
    /^medmesh: no network: npm cannot reach its registry \(needed for pnpm [\d.]+\); details in \S+\n$/,
  );
  expect(log()).toContain('EAI_AGAIN');
});

test('without apt-get the missing packages are named', async () => {
  const { code, stderr } = await runSetup(['ninja', 'radosgw'], { cmake: ready.cmake }, ['--test']);
  expect(code).toBe(1);
  expect(stderr).toMatch(
    /^medmesh: these Debian packages are missing and there is no apt-get to install them with: ninja-build.* radosgw/,
  );
});

test('an argument nobody knows is refused with the usage', async () => {
  const { code, stderr } = await runSetup([], {}, ['--tests']);
  expect([code, stderr]).toEqual([2, "medmesh: unknown argument '--tests'; usage: sh scripts/setup.sh [--test]\n"]);
});
