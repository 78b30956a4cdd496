// Builds the engine with CMake and Ninja when a source, a header package or the compiler changed since the last build.
//   node scripts/build.ts              build/release with engine.node and the native tests
//   node scripts/build.ts --sanitize   build/asan: the native tests under the address and undefined-behaviour sanitizers
//   node scripts/build.ts --bench      build/release with the benchmarks too
//   node scripts/build.ts --cuda       build/cuda with libengine_cuda.so, its tests and its benchmark for a device; needs nvcc
//   … --shipped                        engine.node, and with --cuda libengine_cuda.so, without tests and benchmarks: what an image holds
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join, relative } from 'node:path';

const packageDir = dirname(import.meta.dirname);
const sanitize = process.argv.includes('--sanitize');
const bench = process.argv.includes('--bench');
const cuda = process.argv.includes('--cuda');
const shippedOnly = process.argv.includes('--shipped');
const buildDir = join(packageDir, 'build', sanitize ? 'asan' : cuda ? 'cuda' : 'release');
const stampPath = join(buildDir, 'built-from');

const stop = (message: string): never => {
  process.stderr.write(`engine: ${message}\n`);
  process.exit(1);
};

const sources = (dir: string): string[] =>
  readdirSync(dir, { withFileTypes: true })
    .flatMap((entry) => (entry.isDirectory() ? sources(join(dir, entry.name)) : [join(dir, entry.name)]))
    .sort();

function compilerVersion(): string {
  try {
    return execFileSync('c++', ['--version'], { encoding: 'utf8' }).split('\n')[0] ?? '';
  } catch {
    return stop(
      'no C++ compiler was found; install g++ (Debian: apt-get install g++ cmake ninja-build nlohmann-json3-dev)',
    );
  }
}

function digestOf(files: string[], extra: string[]): string {
  const hash = createHash('sha256');
  for (const line of extra) hash.update(`${line}\n`);
  for (const file of files)
    hash
      .update(`${relative(packageDir, file)}\0`)
      .update(readFileSync(file))
      .update('\0');
  return hash.digest('hex');
}

function run(command: string, args: string[]): void {
  const result = spawnSync(command, args, { stdio: 'inherit' });
  if (result.error) stop(`${command} could not be started (${result.error.message}); install cmake and ninja-build`);
  if (result.status !== 0) stop(`${command} failed with exit code ${result.status}`);
}

const require = createRequire(import.meta.url);
const addonApi = dirname(require.resolve('node-addon-api/package.json'));
const nodeHeaders = join(dirname(require.resolve('node-api-headers/package.json')), 'include');

const native = [join(packageDir, 'CMakeLists.txt'), ...sources(join(packageDir, 'native'))];
const addon = sanitize ? [] : sources(join(packageDir, 'addon'));
const benches =
  (bench || cuda) && !shippedOnly ? sources(join(packageDir, 'bench')).filter((file) => file.endsWith('.cpp')) : [];
const versions = [compilerVersion(), relative(packageDir, addonApi), relative(packageDir, nodeHeaders)];
const shipped = [...native, ...addon].filter((file) => !/_(test|fuzz)\.cpp$/.test(file));
const version = digestOf(shipped, versions).slice(0, 12);
const stamp = digestOf(
  [...native, ...addon, ...benches],
  [...versions, bench ? 'bench' : '', cuda ? 'cuda' : '', ...(shippedOnly ? ['shipped'] : [])],
);

const product = join(buildDir, sanitize ? 'core_test' : 'engine.node');
const built = existsSync(stampPath) ? readFileSync(stampPath, 'utf8') : '';
if (built === stamp && existsSync(product)) {
  process.stdout.write(`engine: ${relative(packageDir, product)} is up to date\n`);
} else {
  mkdirSync(buildDir, { recursive: true });
  run('cmake', [
    '-S',
    packageDir,
    '-B',
    buildDir,
    '-G',
    'Ninja',
    '-DCMAKE_BUILD_TYPE=Release',
    '--log-level=WARNING',
    `-DENGINE_SANITIZE=${sanitize ? 'ON' : 'OFF'}`,
    `-DENGINE_ADDON=${sanitize ? 'OFF' : 'ON'}`,
    `-DENGINE_TESTS=${shippedOnly ? 'OFF' : 'ON'}`,
    `-DENGINE_BENCH=${benches.length > 0 ? 'ON' : 'OFF'}`,
    `-DENGINE_CUDA=${cuda ? 'ON' : 'OFF'}`,
    `-DENGINE_NODE_ADDON_API=${addonApi}`,
    `-DENGINE_NODE_API_HEADERS=${nodeHeaders}`,
    `-DENGINE_BUILD_DIGEST=${version}`,
  ]);
  const targets = shippedOnly ? ['engine_addon', ...(cuda ? ['engine_cuda'] : [])] : [];
  run('ninja', ['-C', buildDir, '-j', String(Math.max(2, availableParallelism())), ...targets]);
  writeFileSync(stampPath, stamp);
}
