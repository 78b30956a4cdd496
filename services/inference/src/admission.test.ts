import { expect, test } from 'vitest';
import { createAdmission } from './admission.ts';

const never = new AbortController().signal;

test('requests beyond the bound wait in order and enter as others leave', async () => {
  const admission = createAdmission(1, 10);
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
  const admission = createAdmission(1, 0);
  await admission.enter(0, never);
  await expect(admission.enter(0, never)).rejects.toMatchObject({
    code: 'resource_exhausted',
    reason: 'QUEUE_FULL',
    retryAfterMs: 1000,
  });
});

test('a caller who goes away, or waits too long, leaves no trace in the queue', async () => {
  const admission = createAdmission(1, 10);
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
  const admission = createAdmission(1, 10);
  admission.close();
  await expect(admission.enter(0, never)).rejects.toMatchObject({ code: 'unavailable', reason: 'DRAINING' });
});
