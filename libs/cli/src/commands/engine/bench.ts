import { type ChildProcess, spawn } from 'node:child_process';
import { readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { Failure } from '@medmesh/errors';
import { Argument, type Command, Option } from 'commander';
import type { CommandContext } from '../../context.ts';
import { repositoryRoot } from '../../mesh/paths.ts';
import { wholeNumber } from '../../option-values.ts';
import { formatBytes, type Output } from '../../output.ts';
import { engineAction } from './engine-action.ts';

const measures = ['all', 'quantize', 'step', 'prefill', 'decode'] as const;
const shapes = ['tiny', '0.5b', '1.5b', '3b', '7b'];

type BenchOptions = {
  shape: string;
  dir?: string;
  tokens: number;
  newTokens: number;
  repeat: number;
  dtype: string;
  threads: number;
};

const enginePackage = join(repositoryRoot, 'libs/engine');

/** Runs a program in a process group of its own, all of which ends when the signal fires; returns its exit code. */
function runGroup(
  command: string,
  args: string[],
  signal: AbortSignal,
  onStart: (child: ChildProcess) => void,
): Promise<number> {
  return new Promise((done, fail) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
    const onAbort = () => {
      if (child.pid !== undefined && child.exitCode === null) process.kill(-child.pid, 'SIGTERM');
    };
    signal.addEventListener('abort', onAbort, { once: true });
    child.once('error', fail);
    child.once('close', (code) => {
      signal.removeEventListener('abort', onAbort);
      done(code ?? 1);
    });
    onStart(child);
  });
}

/** Builds the benchmark if a source changed. What the build says is shown only if it fails. */
async function build(signal: AbortSignal): Promise<void> {
  let said = '';
  const code = await runGroup(
    process.execPath,
    [join(enginePackage, 'scripts/build.ts'), '--bench'],
    signal,
    (child) => {
      for (const stream of [child.stdout, child.stderr])
        stream?.on('data', (chunk: Buffer) => {
          said = (said + String(chunk)).slice(-4000);
        });
    },
  );
  signal.throwIfAborted();
  if (code !== 0) throw new Failure('internal', `the benchmark cannot be built:\n${said}`, { reason: 'BUILD_FAILED' });
}

type Line = {
  bench: string;
  seconds: number;
  peak_rss_bytes: number;
  tokens_per_second?: number;
  bytes_per_second?: number;
};

function describe(line: Line): string {
  const time = line.seconds < 1 ? `${(1000 * line.seconds).toFixed(1)} ms` : `${line.seconds.toFixed(2)} s`;
  const rate =
    line.bench !== 'quantize' && line.tokens_per_second !== undefined
      ? `${line.tokens_per_second.toFixed(1)} tok/s`
      : `${formatBytes(Math.round(line.bytes_per_second ?? 0))}/s`;
  return `${line.bench.padEnd(9)} ${time.padStart(9)}  ${rate.padStart(12)}  peak ${formatBytes(line.peak_rss_bytes)}`;
}

function show(out: Output, text: string): void {
  if (out.json) process.stdout.write(`${text}\n`);
  else out.say(describe(JSON.parse(text) as Line));
}

/** What a measurement that was stopped leaves beside its models. */
async function removeUnfinished(dir: string): Promise<void> {
  const entries = await readdir(dir).catch(() => []);
  const unfinished = entries.filter((name) => /^quantize-\d+$|\.staging-\d+-\d+$/.test(name));
  await Promise.all(unfinished.map((name) => rm(join(dir, name), { recursive: true, force: true })));
}

async function bench({ out, signal }: CommandContext, measure: string, options: BenchOptions): Promise<void> {
  await build(signal);
  const dir = resolve(options.dir ?? join(tmpdir(), `medmesh-bench-${options.shape}`));
  const args = [
    [measure, '--shape', options.shape, '--dir', dir, '--compute', options.dtype],
    ['--tokens', options.tokens, '--new-tokens', options.newTokens, '--repeat', options.repeat],
    options.threads === 0 ? [] : ['--threads', options.threads],
  ];
  let said = '';
  const program = join(enginePackage, 'build/release/engine-bench');
  const code = await runGroup(program, args.flat().map(String), signal, (child) => {
    if (child.stdout) createInterface({ input: child.stdout }).on('line', (line) => show(out, line));
    child.stderr?.on('data', (chunk: Buffer) => {
      said = (said + String(chunk)).slice(-4000);
    });
  });
  if (code === 0) return;
  await removeUnfinished(dir);
  signal.throwIfAborted();
  const words = said.trim().replace(/^engine-bench: /, '') || `it ended with ${code}`;
  throw new Failure(code === 2 ? 'invalid_argument' : 'internal', words, { reason: 'BENCH_FAILED' });
}

/** `engine bench`: what a user waits for, on a model of a real shape with random weights. */
export function addBenchCommand(group: Command, signal: AbortSignal): void {
  group
    .command('bench')
    .description('measure quantizing, a QLoRA step, prefill and decode on random weights of a real shape')
    .addArgument(new Argument('[measure]', 'what to measure').choices(measures).default('all'))
    .addOption(new Option('--shape <shape>', 'shape of the model').choices(shapes).default('1.5b'))
    .option('--dir <folder>', 'where the random models are kept (1.5b: 4.3 GB; default: in the temporary folder)')
    .option('--tokens <n>', 'tokens of a step and of a prompt', wholeNumber(1, 1_000_000), 512)
    .option('--new-tokens <n>', 'tokens that decode makes', wholeNumber(2, 1_000_000), 64)
    .option('--repeat <n>', 'runs of which the best counts', wholeNumber(1, 1_000_000), 3)
    .addOption(new Option('--dtype <dtype>', 'operands of matrix products').choices(['f32', 'bf16']).default('bf16'))
    .option('--threads <n>', '0: as many as this process may use', wholeNumber(0, 1024), 0)
    .addHelpText(
      'after',
      '\nBuilds the benchmark first if the engine changed. With --json a line for each measurement, with the machine and what it can reach:\n' +
        '  {"bench", "seconds", "cpu_seconds", "peak_rss_bytes", "tokens_per_second", …, "machine": {…}}',
    )
    .action(
      engineAction(signal, (context, measure: string, options: BenchOptions) => bench(context, measure, options)),
    );
}
