import { Failure } from '@medmesh/errors';

export type Admission = {
  /** Waits for a place. Returns how long it took and the way to give it back. */
  enter(maxQueueMs: number, signal: AbortSignal): Promise<{ queuedMs: number; leave: () => void }>;
  /** Refuses everybody from now on. */
  close(): void;
  readonly running: number;
  readonly waiting: number;
};

/** A bounded number of requests run, a bounded number wait in order, the rest are refused with a time to come back. */
export function createAdmission(maxRunning: number, maxWaiting: number): Admission {
  const queue: (() => void)[] = [];
  let running = 0;
  let closed = false;

  const leave = () => {
    running -= 1;
    queue.shift()?.();
  };

  return {
    async enter(maxQueueMs, signal) {
      if (closed)
        throw new Failure('unavailable', 'the server is draining', { reason: 'DRAINING', retryAfterMs: 1_000 });
      signal.throwIfAborted();
      const since = performance.now();
      if (running >= maxRunning) {
        if (queue.length >= maxWaiting) {
          throw new Failure('resource_exhausted', `${running} requests run and ${queue.length} wait; come back later`, {
            reason: 'QUEUE_FULL',
            retryAfterMs: 1_000,
          });
        }
        const limit = maxQueueMs > 0 ? AbortSignal.any([signal, AbortSignal.timeout(maxQueueMs)]) : signal;
        await new Promise<void>((resolve, reject) => {
          const go = () => {
            limit.removeEventListener('abort', giveUp);
            resolve();
          };
          const giveUp = () => {
            queue.splice(queue.indexOf(go), 1);
            reject(
              signal.aborted
                ? (signal.reason as Error)
                : new Failure('resource_exhausted', `waited ${maxQueueMs} ms for a place`, {
                    reason: 'QUEUE_TIMEOUT',
                    retryAfterMs: 1_000,
                  }),
            );
          };
          queue.push(go);
          limit.addEventListener('abort', giveUp, { once: true });
        });
      }
      running += 1;
      let left = false;
      return {
        queuedMs: performance.now() - since,
        leave() {
          if (!left) leave();
          left = true;
        },
      };
    },
    close() {
      closed = true;
    },
    get running() {
      return running;
    },
    get waiting() {
      return queue.length;
    },
  };
}
