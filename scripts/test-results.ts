import { existsSync, readFileSync } from 'node:fs';

export type StepResult = { passed: number; failed: number; skipped: number };

type VitestReport = {
  numPassedTests: number;
  numFailedTests: number;
  numPendingTests: number;
  numTodoTests: number;
  testResults: { status: string; assertionResults: { status: string }[] }[];
};

/** Counts a run from vitest's JSON report. A file that fails to load, or a run that fails without a failed test, counts as one. */
export function readVitest(report: string, exitCode: number): StepResult {
  if (!existsSync(report)) return { passed: 0, failed: 1, skipped: 0 };
  const json = JSON.parse(readFileSync(report, 'utf8')) as VitestReport;
  const brokenFiles = json.testResults.filter(
    ({ status, assertionResults }) => status === 'failed' && !assertionResults.some((test) => test.status === 'failed'),
  ).length;
  const failed = json.numFailedTests + brokenFiles;
  return {
    passed: json.numPassedTests,
    failed: exitCode !== 0 ? Math.max(failed, 1) : failed,
    skipped: json.numPendingTests + json.numTodoTests,
  };
}

/**
 * Counts a run of ctest: the cases inside each test program, from the line each program ends with (`N passed, N failed, …`) in
 * ctest's own log, where that line may be missing because the program crashed. Without ctest's closing line nothing ran; that is a failure.
 */
export function readCtest(output: string, log: string, exitCode: number): StepResult {
  const closing = output.match(/(\d+) tests failed out of (\d+)/);
  if (!closing || closing[2] === '0') return { passed: 0, failed: 1, skipped: 0 };
  const cases = [...log.matchAll(/^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$/gm)];
  const sum = (group: number) => cases.reduce((total, line) => total + Number(line[group] ?? 0), 0);
  const failed = Math.max(sum(2), Number(closing[1]), exitCode === 0 ? 0 : 1);
  return { passed: sum(1), failed, skipped: sum(3) };
}
