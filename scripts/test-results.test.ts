import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { readCtest, readVitest } from './test-results.ts';

const folder = mkdtempSync(join(tmpdir(), 'medmesh-results-'));
afterAll(() => rmSync(folder, { recursive: true }));

function report(overrides: object): string {
  const path = join(folder, 'report.json');
  const none = { numPassedTests: 0, numFailedTests: 0, numPendingTests: 0, numTodoTests: 0, testResults: [] };
  writeFileSync(path, JSON.stringify({ ...none, ...overrides }));
  return path;
}

test('passed, failed and skipped tests of vitest are counted', () => {
  const path = report({ numPassedTests: 7, numFailedTests: 2, numPendingTests: 1 });
  expect(readVitest(path, 1)).toEqual({ passed: 7, failed: 2, skipped: 1 });
});

test('a test file that does not load is a failure, although it has no failed test', () => {
  const path = report({ numPassedTests: 7, testResults: [{ status: 'failed', assertionResults: [] }] });
  expect(readVitest(path, 1)).toEqual({ passed: 7, failed: 1, skipped: 0 });
});

test('a run that fails without a failed test is a failure, and so is one without a report', () => {
  expect(readVitest(report({ numPassedTests: 7 }), 1)).toEqual({ passed: 7, failed: 1, skipped: 0 });
  expect(readVitest(join(folder, 'none.json'), 0)).toEqual({ passed: 0, failed: 1, skipped: 0 });
});

const closing = (failed: number, all: number) =>
  `\n${failed === 0 ? 100 : 50}% tests passed, ${failed} tests failed out of ${all}\n`;

test('the cases inside each program that ctest runs are counted', () => {
  const log =
    'ok   a sentence (1 ms)\n12 passed, 0 failed, 1 skipped\n<end of output>\n5 passed, 2 failed, 0 skipped\n';
  expect(readCtest(closing(1, 2), log, 8)).toEqual({ passed: 17, failed: 2, skipped: 1 });
  expect(readCtest(closing(0, 1), '12 passed, 0 failed, 1 skipped\n', 0)).toEqual({
    passed: 12,
    failed: 0,
    skipped: 1,
  });
});

test('a program that crashes before its closing line is a failure', () => {
  expect(readCtest(closing(1, 2), '12 passed, 0 failed, 0 skipped\n', 8)).toEqual({
    passed: 12,
    failed: 1,
    skipped: 0,
  });
});

test('a ctest run that found no test, or ended without its closing line, is a failure', () => {
  expect(readCtest('No tests were found!!!\n', '', 0)).toEqual({ passed: 0, failed: 1, skipped: 0 });
  expect(readCtest(closing(0, 0), '', 0)).toEqual({ passed: 0, failed: 1, skipped: 0 });
  expect(readCtest('ninja: build stopped\n', '', 1)).toEqual({ passed: 0, failed: 1, skipped: 0 });
});
