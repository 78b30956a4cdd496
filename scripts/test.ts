// Runs every check and closes with one line, `N passed, N failed`. Set up first: sh scripts/setup.sh --test.
//   node scripts/test.ts                     everything
//   node scripts/test.ts --only lint,unit    some of it
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { delimiter, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { spawnProcess } from '../libs/testkit/src/spawn-process.ts';
import { readCtest, readVitest, type StepResult } from './test-results.ts';

const root = resolve(import.meta.dirname, '..');
const logs = join(root, '.cache/test');
const shownLines = 150;

/** One check. It counts as one test unless `read` finds how many there were in its output. */
type Step = {
  name: string;
  about: string;
  command: string;
  timeoutMinutes: number;
  read?: (output: string, exitCode: number) => StepResult;
};

const sources = 'libs services tests scripts vitest.config.ts';
const vitest = (project: string, about: string, timeoutMinutes: number): Step => {
  const report = join(logs, `${project}.json`);
  return {
    name: project,
    about,
    command: `vitest run --project ${project} --reporter=default --reporter=json --outputFile.json=${report}`,
    timeoutMinutes,
    read: (_, exitCode) => readVitest(report, exitCode),
  };
};

const native = (name: string, about: string, script: string, tree: string): Step => ({
  name,
  about,
  command: `cd libs/engine && npm run --silent ${script}`,
  timeoutMinutes: 20,
  read: (output, exitCode) => {
    const log = join(root, 'libs/engine/build', tree, 'Testing/Temporary/LastTest.log');
    return readCtest(output, existsSync(log) ? readFileSync(log, 'utf8') : '', exitCode);
  },
});

const steps: Step[] = [
  {
    name: 'generated',
    about: 'libs/proto/src/gen is what proto/ generates',
    command:
      'rm -rf .cache/test/gen && sh libs/proto/generate.sh .cache/test/gen && diff -ru libs/proto/src/gen .cache/test/gen',
    timeoutMinutes: 2,
  },
  { name: 'proto-format', about: 'buf format', command: 'buf format --diff --exit-code proto', timeoutMinutes: 1 },
  { name: 'proto-lint', about: 'buf lint', command: 'buf lint', timeoutMinutes: 1 },
  {
    name: 'format',
    about: 'biome: format and lint',
    command: 'biome ci --colors=off --max-diagnostics=50 .',
    timeoutMinutes: 2,
  },
  { name: 'lint', about: 'oxlint with types', command: `oxlint --type-aware ${sources}`, timeoutMinutes: 3 },
  { name: 'types', about: 'tsc', command: 'tsc --pretty false -p tsconfig.json', timeoutMinutes: 3 },
  native('engine', 'the engine by ctest', 'test:native', 'release'),
  native('engine-asan', 'the same under the address and undefined-behaviour sanitizers', 'test:asan', 'asan'),
  {
    name: 'fuzz',
    about: 'libFuzzer on the readers for a moment each, where Clang is installed',
    command: 'cd libs/engine && npm run --silent fuzz -- 3',
    timeoutMinutes: 20,
  },
  vitest('unit', 'functions', 5),
  vitest('component', 'with real servers', 10),
  vitest('e2e', 'whole processes', 15),
];

async function runStep(step: Step): Promise<StepResult & { output: string }> {
  const { PATH = '' } = process.env;
  const running = await spawnProcess({
    command: 'sh',
    args: ['-c', step.command],
    cwd: root,
    env: {
      PATH: [join(root, 'node_modules/.bin'), join(root, '.cache/bin'), PATH].join(delimiter),
      NO_COLOR: '1',
      FORCE_COLOR: undefined,
    },
  });
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    void running.kill();
  }, step.timeoutMinutes * 60_000);
  const { code } = await running.exited;
  clearTimeout(timer);
  const output = `${running.lines().join('\n')}${late ? `\nended after ${step.timeoutMinutes} minutes` : ''}\n`;
  writeFileSync(join(logs, `${step.name}.log`), output);
  const exitCode = code ?? 1;
  const result = step.read?.(output, exitCode) ?? {
    passed: exitCode === 0 ? 1 : 0,
    failed: exitCode === 0 ? 0 : 1,
    skipped: 0,
  };
  return { ...result, output };
}

function tail(output: string, logFile: string): string {
  const lines = output.trimEnd().split('\n');
  const left = lines.length - shownLines;
  return [...(left > 0 ? [`(${left} more lines in ${logFile})`] : []), ...lines.slice(-shownLines)].join('\n');
}

const { values } = parseArgs({ options: { only: { type: 'string', multiple: true } } });
const wanted = values.only?.flatMap((names) => names.split(','));
const unknown = wanted?.filter((name) => !steps.some((step) => step.name === name)) ?? [];
if (unknown.length > 0) {
  console.error(`no step is called ${unknown.join(', ')}; there are ${steps.map((step) => step.name).join(', ')}`);
  process.exit(2);
}

rmSync(logs, { recursive: true, force: true });
mkdirSync(logs, { recursive: true });
const total = { passed: 0, failed: 0, skipped: 0 };
for (const step of steps.filter(({ name }) => !wanted || wanted.includes(name))) {
  process.stdout.write(`${step.name.padEnd(13)} ${step.about} … `);
  const started = performance.now();
  const { passed, failed, skipped, output } = await runStep(step);
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const counts = passed + failed > 1 ? `, ${passed} of ${passed + failed}${skipped ? `, ${skipped} skipped` : ''}` : '';
  console.log(`${failed === 0 ? 'ok' : 'FAILED'} (${seconds} s${counts})`);
  if (failed > 0) console.log(`${tail(output, join(logs, `${step.name}.log`))}\n`);
  total.passed += passed;
  total.failed += failed;
  total.skipped += skipped;
}
if (total.skipped > 0) console.log(`${total.skipped} tests were skipped; npx vitest run names them`);
console.log(`${total.passed} passed, ${total.failed} failed`);
process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0;
