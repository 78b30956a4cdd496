import { Failure } from '@medmesh/errors';
import { expect, test } from 'vitest';
import { exitCodeOf, formatBytes, formatSeconds, table } from './output.ts';

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
