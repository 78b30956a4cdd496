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

/** Counts a run from ctest's closing line. Without one nothing ran, and that is a failure. */
export function readCtest(output: string, exitCode: number): StepResult {
  const lines = [...output.matchAll(/(\d+) tests failed out of (\d+)/g)];
  const failed = lines.reduce((sum, line) => sum + Number(line[1]), 0);
  const all = lines.reduce((sum, line) => sum + Number(line[2]), 0);
  if (lines.length === 0 || all === 0) return { passed: 0, failed: 1, skipped: 0 };
  return { passed: all - failed, failed: exitCode !== 0 ? Math.max(failed, 1) : failed, skipped: 0 };
}
