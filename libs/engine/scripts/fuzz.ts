// Builds the libFuzzer targets with Clang and runs each for a while.   node scripts/fuzz.ts [seconds per target]
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';

const packageDir = dirname(import.meta.dirname);
const buildDir = join(packageDir, 'build', 'fuzz');
const seconds = Number(process.argv[2] ?? 60);

function run(command: string, args: string[]): void {
  const { status } = spawnSync(command, args, { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}

const clang = ['clang++', 'clang++-14'].find((name) => spawnSync(name, ['--version']).status === 0);
if (clang === undefined) {
  process.stdout.write('engine: fuzzing needs Clang (Debian: apt-get install clang-14 libclang-rt-14-dev); skipped\n');
  process.exit(0);
}
const flags = ['-DENGINE_FUZZ=ON', '-DENGINE_SANITIZE=ON', '-DENGINE_TESTS=OFF', `-DCMAKE_CXX_COMPILER=${clang}`];
run('cmake', ['-S', packageDir, '-B', buildDir, '-G', 'Ninja', '-DCMAKE_BUILD_TYPE=Release', ...flags]);
run('ninja', ['-C', buildDir]);
for (const target of readdirSync(buildDir).filter((name) => name.endsWith('_fuzz'))) {
  const corpus = join(buildDir, 'corpus', target);
  mkdirSync(corpus, { recursive: true });
  run(join(buildDir, target), [corpus, `-max_total_time=${seconds}`, '-max_len=4096', '-print_final_stats=1']);
}
