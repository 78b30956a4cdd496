import { setTimeout as sleep } from 'node:timers/promises';

/** Sends reports one after the other, at most one in `intervalMs`; of those that come meanwhile only the newest, so nothing goes backwards. */
export type ProgressReporter<T> = {
  report(value: T): void;
  /** Resolves when the newest report has been sent; later ones are dropped. */
  close(): Promise<void>;
};

export function createProgressReporter<T>(send: (value: T) => Promise<void>, intervalMs: number): ProgressReporter<T> {
  const closing = new AbortController();
  let waiting: { value: T } | undefined;
  let sending: Promise<void> | undefined;

  const sendAll = async (): Promise<void> => {
    while (waiting !== undefined) {
      const { value } = waiting;
      waiting = undefined;
      await send(value);
      await sleep(intervalMs, undefined, { signal: closing.signal }).catch(() => undefined);
    }
    sending = undefined;
  };

  return {
    report(value) {
      if (closing.signal.aborted) return;
      waiting = { value };
      sending ??= sendAll();
    },
    async close() {
      closing.abort();
      await sending;
    },
  };
}
