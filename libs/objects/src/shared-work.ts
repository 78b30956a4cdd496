/**
 * Work that several callers wait for, by key: whoever asks while it is under way joins it. It lives as long as somebody
 * wants it. A caller whose signal aborts leaves at once with the signal's reason; when the last one leaves, the work's own
 * signal aborts, and that caller is told once the work has cleaned up. An error of the work goes to all who wait.
 */
export type SharedWork = (
  key: string,
  signal: AbortSignal | undefined,
  work: (signal: AbortSignal) => Promise<void>,
) => Promise<void>;

type Shared = { readonly done: Promise<void>; readonly stop: AbortController; waiting: number };

export function createSharedWork(): SharedWork {
  const running = new Map<string, Shared>();

  function begin(key: string, work: (signal: AbortSignal) => Promise<void>): Shared {
    const stop = new AbortController();
    const shared: Shared = { done: work(stop.signal), stop, waiting: 0 };
    running.set(key, shared);
    const forget = (): void => {
      if (running.get(key) === shared) running.delete(key);
    };
    // Also hears an error that comes when all have left.
    shared.done.then(forget, forget);
    return shared;
  }

  return async (key, signal, work) => {
    signal?.throwIfAborted();
    const shared = running.get(key) ?? begin(key, work);
    shared.waiting += 1;
    try {
      await untilAborted(shared.done, signal);
    } finally {
      shared.waiting -= 1;
      if (shared.waiting === 0 && signal?.aborted === true) {
        // Nobody may join what is ending.
        if (running.get(key) === shared) running.delete(key);
        shared.stop.abort(signal.reason);
        await shared.done.catch(() => undefined);
      }
    }
  };
}

/** The promise's outcome, or the signal's reason as soon as it aborts. */
function untilAborted(promise: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return promise;
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    signal.addEventListener('abort', onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
