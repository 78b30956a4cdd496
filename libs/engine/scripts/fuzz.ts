// Builds the libFuzzer targets with Clang and runs each for a while, one after the other.
//   node scripts/fuzz.ts [seconds per target] [target …]        node scripts/fuzz.ts 300 gguf config
// Starts from the committed corpus fuzz/<target>/ and what earlier runs found (build/fuzz/corpus). An input that breaks a target is left in
// build/fuzz/found; minimized, it becomes a file of fuzz/<target>/, which every build's tests replay.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';

const packageDir = dirname(import.meta.dirname);
const buildDir = join(packageDir, 'build', 'fuzz');
const seconds = Number(process.argv[2] ?? 60);
const only = process.argv.slice(3);

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
const quiet = '--log-level=WARNING';
run('cmake', ['-S', packageDir, '-B', buildDir, '-G', 'Ninja', '-DCMAKE_BUILD_TYPE=Release', quiet, ...flags]);
run('ninja', ['-C', buildDir]);
const targets = readdirSync(buildDir)
  .filter((name) => name.endsWith('_fuzz'))
  .map((name) => name.replace(/_fuzz$/, ''));
for (const target of only.length > 0 ? only : targets) {
  const [grown, committed, found] = [
    join(buildDir, 'corpus', target),
    join(packageDir, 'fuzz', target),
    join(buildDir, 'found'),
  ];
  for (const dir of [grown, found]) mkdirSync(dir, { recursive: true });
  const limits = [`-max_total_time=${seconds}`, '-max_len=4096', '-timeout=10', '-rss_limit_mb=2048'];
  const dictionary = join(packageDir, 'fuzz', `${target}.dict`);
  const words = existsSync(dictionary) ? [`-dict=${dictionary}`] : [];
  const output = [`-artifact_prefix=${found}/${target}-`, '-print_final_stats=1'];
  run(join(buildDir, `${target}_fuzz`), [grown, committed, ...limits, ...words, ...output]);
}
