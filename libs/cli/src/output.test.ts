import { readFile } from 'node:fs/promises';
import { Failure } from '@medmesh/errors';
import { expect, test, vi } from 'vitest';
import { exitCodeOf, formatBytes, formatSeconds, reportError, table } from './output.ts';

test('sizes and times are written as people read them', () => {
  expect([0, 1023, 1024, 1536, 5 * 2 ** 30].map(formatBytes)).toEqual([
    '0 B',
    '1023 B',
    '1.0 KiB',
    '1.5 KiB',
    '5.0 GiB',
  ]);
  expect([0, 65, 3725].map(formatSeconds)).toEqual(['0:00', '1:05', '1:02:05']);
});

test('columns are as wide as their widest cell, and nothing trails', () => {
  expect(
    table(
      ['ID', 'STATE'],
      [
        ['a-long-id', 'RUNNING'],
        ['b', ''],
      ],
    ),
  ).toBe('ID         STATE\na-long-id  RUNNING\nb');
});

test('the exit code tells whose fault it was', () => {
  const code = (c: ConstructorParameters<typeof Failure>[0]) => exitCodeOf(new Failure(c, 'x'));
  expect([
    code('invalid_argument'),
    code('not_found'),
    code('unavailable'),
    code('cancelled'),
    code('internal'),
  ]).toEqual([2, 2, 3, 130, 1]);
});

test('a file that a person named and that is not there is that person’s to mend; what nobody foresaw is told as it is', async () => {
  const told: string[] = [];
  const write = vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
    told.push(String(text));
    return true;
  });
  try {
    const missing: unknown = await readFile('/nowhere/rows.jsonl').catch((error: unknown) => error);
    expect(reportError(missing, false)).toBe(2);
    expect(reportError(new TypeError('x is not a function'), true)).toBe(1);
  } finally {
    write.mockRestore();
  }
  expect(told[0]).toBe('medmesh: /nowhere/rows.jsonl does not exist\n');
  expect(JSON.parse(told[1] ?? '')).toEqual({
    error: { code: 'internal', reason: 'UNFORESEEN', message: 'an unforeseen error: x is not a function' },
  });
});
