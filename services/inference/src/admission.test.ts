import { expect, test } from 'vitest';
import { createAdmission } from './admission.ts';

const never = new AbortController().signal;

test('requests beyond the bound wait in order and enter as others leave', async () => {
  const admission = createAdmission({ maxRunning: 1, maxWaiting: 10 });
  const first = await admission.enter(0, never);
  const order: number[] = [];
  const waiting = [1, 2, 3].map((i) =>
    admission.enter(0, never).then((place) => {
      order.push(i);
      place.leave();
    }),
  );
  expect(admission.waiting).toBe(3);
  first.leave();
  await Promise.all(waiting);
  expect(order).toEqual([1, 2, 3]);
  expect([admission.running, admission.waiting]).toEqual([0, 0]);
});

test('a full queue refuses with a time to come back', async () => {
  const admission = createAdmission({ maxRunning: 1, maxWaiting: 0 });
  await admission.enter(0, never);
  await expect(admission.enter(0, never)).rejects.toMatchObject({
    code: 'resource_exhausted',
    reason: 'QUEUE_FULL',
    retryAfterMs: 1000,
  });
});

test('a caller who goes away, or waits too long, leaves no trace in the queue', async () => {
  const admission = createAdmission({ maxRunning: 1, maxWaiting: 10 });
  const held = await admission.enter(0, never);
  const gone = new AbortController();
  const left = admission.enter(0, gone.signal);
  const late = admission.enter(10, never);
  gone.abort();
  await expect(left).rejects.toMatchObject({ name: 'AbortError' });
  await expect(late).rejects.toMatchObject({ code: 'resource_exhausted', reason: 'QUEUE_TIMEOUT' });
  expect(admission.waiting).toBe(0);
  held.leave();
  held.leave();
  expect(admission.running).toBe(0);
});

test('a draining server refuses new requests', async () => {
  const admission = createAdmission({ maxRunning: 1, maxWaiting: 10 });
  admission.close();
  await expect(admission.enter(0, never)).rejects.toMatchObject({ code: 'unavailable', reason: 'DRAINING' });
});

test('the prompt tokens that wait are bounded, a lone large prompt is let in, and the time to come back is what they take', async () => {
  const limits = { maxRunning: 1, maxWaiting: 10, maxWaitingTokens: 100, tokensPerSecond: () => 10 };
  const admission = createAdmission(limits);
  const signal = new AbortController().signal;
  const first = await admission.enter(0, signal, { promptTokens: 5000 });
  const second = admission.enter(0, signal, { promptTokens: 200 });
  expect(admission.waitingTokens).toBe(200);
  await expect(admission.enter(0, signal, { promptTokens: 1 })).rejects.toMatchObject({
    code: 'resource_exhausted',
    reason: 'QUEUE_FULL',
    retryAfterMs: 20_000,
  });
  first.leave();
  (await second).leave();
  expect(admission.running + admission.waitingTokens).toBe(0);
});

test('who is more urgent is let in first, and equals in their order', async () => {
  const admission = createAdmission({ maxRunning: 1, maxWaiting: 10 });
  const signal = new AbortController().signal;
  const place = await admission.enter(0, signal);
  const order: string[] = [];
  const wait = async (name: string, priority: number) => {
    const mine = await admission.enter(0, signal, { priority });
    order.push(name);
    mine.leave();
  };
  const all = [wait('batch 1', 1), wait('batch 2', 1), wait('urgent', 0)];
  place.leave();
  await Promise.all(all);
  expect(order).toEqual(['urgent', 'batch 1', 'batch 2']);
});
