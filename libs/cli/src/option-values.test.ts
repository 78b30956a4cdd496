import { expect, test } from 'vitest';
import { memorySize, number, wholeNumber, wholeNumbers } from './option-values.ts';

test('a number is read as it is written, within its range', () => {
  expect(['0', '2e-4', '1'].map(number(0, 1))).toEqual([0, 2e-4, 1]);
  for (const text of ['', ' ', 'x', '1.5', '-1', 'NaN', 'Infinity', '1,5'])
    expect(() => number(0, 1)(text), text).toThrow('Give a number from 0 to 1.');
  expect(() => number(0)('-1')).toThrow('Give a number, 0 or more.');
});

test('a whole number has no fraction and no other words', () => {
  expect(['1', '60', '1e3'].map(wholeNumber(1))).toEqual([1, 60, 1000]);
  for (const text of ['0', '1.5', '', 'many', '9007199254740993'])
    expect(() => wholeNumber(1)(text), text).toThrow('Give a whole number, 1 or more.');
  expect(() => wholeNumber(0, 65_535)('65536')).toThrow('Give a whole number from 0 to 65535.');
});

test('a list of whole numbers is separated by commas or spaces', () => {
  expect(['7', '1,2, 3', '4 5'].map(wholeNumbers)).toEqual([[7], [1, 2, 3], [4, 5]]);
  for (const text of ['', ',', '1,two', '-1', '1.5'])
    expect(() => wholeNumbers(text), text).toThrow('Give whole numbers separated by commas.');
});

test('a size of memory is in GiB or MiB, or left to the program', () => {
  expect(['24GiB', '7.5GiB', '512MiB', 'auto'].map(memorySize)).toEqual([24 * 2 ** 30, 7.5 * 2 ** 30, 2 ** 29, 'auto']);
  for (const text of ['', '0GiB', '24', '24GB', '-1GiB', '1e3GiB', 'much'])
    expect(() => memorySize(text), text).toThrow('Give a size such as 24GiB or 512MiB, or auto.');
});
