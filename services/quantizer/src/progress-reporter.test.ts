import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { createProgressReporter } from './progress-reporter.ts';

test('reports are sent one at a time, and of those that pile up only the newest', async () => {
  const sent: number[] = [];
  let sending = 0;
  const reporter = createProgressReporter<number>(async (value) => {
    sending += 1;
    expect(sending).toBe(1);
    await sleep(5);
    sent.push(value);
    sending -= 1;
  }, 20);
  for (let value = 1; value <= 100; value += 1) {
    reporter.report(value);
    if (value % 25 === 0) await sleep(30);
  }
  await reporter.close();
  expect(sent[0]).toBe(1);
  expect(sent.at(-1)).toBe(100);
  expect(sent.length).toBeLessThan(12);
  expect(sent).toEqual(sent.toSorted((a, b) => a - b));
});

test('closing sends the newest report at once and drops what comes later', async () => {
  const sent: string[] = [];
  const reporter = createProgressReporter<string>(async (value) => void sent.push(value), 60_000);
  reporter.report('first');
  reporter.report('second');
  await reporter.close();
  reporter.report('late');
  await sleep(10);
  expect(sent).toEqual(['first', 'second']);
});
