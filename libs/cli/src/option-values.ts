import { InvalidArgumentError } from 'commander';

/** Parsers for commander's options: a value that is not allowed ends the command with exit code 2 and says what is. */

/** A finite number from `least` to `most`. */
export const number =
  (least = Number.NEGATIVE_INFINITY, most = Number.POSITIVE_INFINITY) =>
  (text: string): number => {
    const value = Number(text);
    if (text.trim() === '' || !Number.isFinite(value) || value < least || value > most)
      throw new InvalidArgumentError(`Give a number${range(least, most)}.`);
    return value;
  };

/** A whole number from `least` to `most`. */
export const wholeNumber =
  (least: number, most = Number.MAX_SAFE_INTEGER) =>
  (text: string): number => {
    const value = Number(text);
    if (text.trim() === '' || !Number.isInteger(value) || value < least || value > most)
      throw new InvalidArgumentError(`Give a whole number${range(least, most)}.`);
    return value;
  };

/** `1,2,3` or `1 2 3`. */
export function wholeNumbers(text: string): number[] {
  const words = text.split(/[\s,]+/).filter((word) => word !== '');
  if (words.length === 0 || words.some((word) => !/^\d{1,15}$/.test(word)))
    throw new InvalidArgumentError('Give whole numbers separated by commas.');
  return words.map(Number);
}

/** `7GiB`, `512MiB` or `auto`: bytes of memory. */
export function memorySize(text: string): number | 'auto' {
  if (text === 'auto') return 'auto';
  const [, digits, unit] = /^(\d{1,6}(?:\.\d{1,3})?)(GiB|MiB)$/.exec(text) ?? [];
  const bytes = Math.floor(Number(digits) * 2 ** (unit === 'GiB' ? 30 : 20));
  if (digits === undefined || bytes === 0)
    throw new InvalidArgumentError('Give a size such as 24GiB or 512MiB, or auto.');
  return bytes;
}

function range(least: number, most: number): string {
  const upper = most < Number.MAX_SAFE_INTEGER;
  if (Number.isFinite(least)) return upper ? ` from ${least} to ${most}` : `, ${least} or more`;
  return upper ? `, at most ${most}` : '';
}
