import { describe, expect, test } from 'vitest';
import { createSharedWork } from './shared-work.ts';

/** Work that ends when it is told to, or when its signal aborts; `begun` counts how often it was started. */
function gatedWork() {
  const state = { begun: 0, cleaned: 0 };
  const gate = Promise.withResolvers<void>();
  const work = async (signal: AbortSignal): Promise<void> => {
    state.begun += 1;
    try {
      await new Promise<void>((resolve, reject) => {
        gate.promise.then(resolve, reject);
        signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
      });
    } finally {
      await Promise.resolve();
      state.cleaned += 1;
    }
  };
  return { state, work, finish: gate.resolve, fail: gate.reject };
}

describe('shared work', () => {
  test('is done once for all who ask while it is under way, and again for who asks later', async () => {
    const share = createSharedWork();
    const { state, work, finish } = gatedWork();
    const calls = [1, 2, 3].map(() => share('a', undefined, work));
    finish();
    await Promise.all(calls);
    expect(state.begun).toBe(1);
    await share('a', undefined, work);
    expect(state.begun).toBe(2);
  });

  test('is kept apart by key', async () => {
    const share = createSharedWork();
    const [one, other] = [gatedWork(), gatedWork()];
    const calls = [share('a', undefined, one.work), share('b', undefined, other.work)];
    one.finish();
    other.finish();
    await Promise.all(calls);
    expect([one.state.begun, other.state.begun]).toEqual([1, 1]);
  });

  test.each([0, 1])(
    'caller %i of two leaves with its own reason, and the work goes on for the other',
    async (leaver) => {
      const share = createSharedWork();
      const { state, work, finish } = gatedWork();
      const stops = [new AbortController(), new AbortController()];
      const calls = stops.map(({ signal }) => share('a', signal, work));
      const reason = new Error('enough');
      stops[leaver]!.abort(reason);
      await expect(calls[leaver]).rejects.toBe(reason);
      expect(state).toEqual({ begun: 1, cleaned: 0 });
      finish();
      await calls[1 - leaver];
      expect(state).toEqual({ begun: 1, cleaned: 1 });
    },
  );

  test('ends when the last caller leaves, who is told when it has cleaned up', async () => {
    const share = createSharedWork();
    const { state, work } = gatedWork();
    const stops = [new AbortController(), new AbortController()];
    const calls = stops.map(({ signal }) => share('a', signal, work));
    for (const stop of stops) stop.abort(new Error('enough'));
    await expect(Promise.allSettled(calls)).resolves.toMatchObject([{ status: 'rejected' }, { status: 'rejected' }]);
    expect(state).toEqual({ begun: 1, cleaned: 1 });
  });

  test('is begun anew for a caller who comes while it cleans up', async () => {
    const share = createSharedWork();
    const cleaning = Promise.withResolvers<void>();
    const cleaned = Promise.withResolvers<void>();
    let begun = 0;
    const work = async (signal: AbortSignal): Promise<void> => {
      begun += 1;
      if (begun > 1) return;
      await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
      cleaning.resolve();
      await cleaned.promise;
      signal.throwIfAborted();
    };
    const stop = new AbortController();
    const left = share('a', stop.signal, work);
    stop.abort(new Error('enough'));
    await cleaning.promise;
    await share('a', undefined, work);
    cleaned.resolve();
    await expect(left).rejects.toThrow('enough');
    expect(begun).toBe(2);
  });

  test('that fails, fails for all who wait', async () => {
    const share = createSharedWork();
    const { work, fail } = gatedWork();
    const calls = [share('a', undefined, work), share('a', new AbortController().signal, work)];
    fail(new Error('damaged'));
    for (const call of calls) await expect(call).rejects.toThrow('damaged');
  });

  test('is not begun for a caller that has given up before', async () => {
    const { state, work } = gatedWork();
    await expect(createSharedWork()('a', AbortSignal.abort(new Error('before')), work)).rejects.toThrow('before');
    expect(state.begun).toBe(0);
  });
});
