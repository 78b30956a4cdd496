import { Failure, toFailure } from '@medmesh/errors';
import type { CommanderError } from 'commander';
import { pathFailure } from './path-failure.ts';

/** Where a command writes: a sentence for people, or JSON for programs. */
export type Output = {
  json: boolean;
  /** For people; nothing with --json. */
  say(line: string): void;
  /** The result: with --json one line of JSON, else `text`. */
  result(value: unknown, text: string): void;
  write(text: string): void;
};

export const createOutput = (json: boolean): Output => ({
  json,
  say(line) {
    if (!json) process.stdout.write(`${line}\n`);
  },
  result(value, text) {
    process.stdout.write(`${json ? JSON.stringify(value) : text}\n`);
  },
  write(text) {
    if (!json) process.stdout.write(text);
  },
});

/** Exit codes: 0 done, 1 failed, 2 the command's or request's fault, 3 nothing answers, 130 interrupted. */
export function exitCodeOf(failure: Failure): number {
  if (
    failure.code === 'invalid_argument' ||
    failure.code === 'not_found' ||
    failure.code === 'already_exists' ||
    failure.code === 'failed_precondition'
  )
    return 2;
  if (failure.code === 'unavailable') return 3;
  return failure.code === 'cancelled' ? 130 : 1;
}

/** An error as this process tells it. There is no log to look into: what nobody foresaw is told as it is. */
function failureOf(error: unknown): Failure {
  const failure = pathFailure(error) ?? toFailure(error);
  if (failure.reason !== 'UNFORESEEN') return failure;
  return new Failure('internal', `an unforeseen error: ${error instanceof Error ? error.message : String(error)}`, {
    reason: 'UNFORESEEN',
    cause: error,
  });
}

/** Tells an error in one line, or as JSON, and returns the exit code. */
export function reportError(error: unknown, json: boolean): number {
  const failure = failureOf(error);
  const { code, reason, message, fields, metadata } = failure;
  process.stderr.write(
    json ? `${JSON.stringify({ error: { code, reason, message, fields, metadata } })}\n` : `medmesh: ${message}\n`,
  );
  return exitCodeOf(failure);
}

/** Wrong use as commander found it: an unknown command or option, a missing argument, a value that is not allowed. */
export const usageFailure = (error: CommanderError): Failure =>
  new Failure(
    'invalid_argument',
    // Commander has printed the help in place of a message.
    error.code.startsWith('commander.help')
      ? 'name a command; --help lists them'
      : error.message.replace(/^error: /, ''),
    { reason: 'USAGE' },
  );

const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** 1536 → `1.5 KiB`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** 3725 → `1:02:05`, 65 → `1:05`. */
export function formatSeconds(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  const pad = (n: number) => String(n).padStart(2, '0');
  const hours = Math.floor(s / 3600);
  return hours > 0
    ? `${hours}:${pad(Math.floor((s % 3600) / 60))}:${pad(s % 60)}`
    : `${Math.floor(s / 60)}:${pad(s % 60)}`;
}

/** Columns as wide as their widest cell. */
export function table(headers: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = headers.map((header, i) => Math.max(header.length, ...rows.map((row) => (row[i] ?? '').length)));
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd();
  return [line(headers), ...rows.map(line)].join('\n');
}
