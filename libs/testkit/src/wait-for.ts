import { setTimeout as sleep } from 'node:timers/promises';

export type WaitOptions = {
  /** What is waited for, as the error names it. */
  what?: string;
  timeoutMs?: number;
  intervalMs?: number;
};

/**
 * Calls `check` until it answers with something truthy, and returns that. An error thrown by `check` counts as "not yet".
 * Throws after `timeoutMs` (30 s: a bound for what never comes, not a measure of speed), naming what was waited for and the last error.
 */
export async function waitFor<T>(
  check: () => T | Promise<T>,
  { what = 'a condition', timeoutMs = 30_000, intervalMs = 20 }: WaitOptions = {},
): Promise<Exclude<Awaited<T>, false | null | undefined | 0 | ''>> {
  const deadline = performance.now() + timeoutMs;
  let cause: unknown;
  for (;;) {
    try {
      const value = await check();
      if (value) return value as Exclude<Awaited<T>, false | null | undefined | 0 | ''>;
    } catch (error) {
      cause = error;
    }
    if (performance.now() >= deadline) {
      const last = cause instanceof Error ? `; last error: ${cause.message}` : '';
      throw new Error(`waited ${timeoutMs} ms for ${what}${last}`, { cause });
    }
    await sleep(intervalMs);
  }
}
