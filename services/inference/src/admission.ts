import { Failure } from '@medmesh/errors';

export type Admission = {
  /** Waits for a place. Returns how long it took and the way to give it back. */
  enter(
    maxQueueMs: number,
    signal: AbortSignal,
    what?: { promptTokens?: number; priority?: number },
  ): Promise<{ queuedMs: number; leave: () => void }>;
  /** Throws what `enter` would throw at once, before anything is spent on the request. */
  check(): void;
  /** Refuses everybody from now on. */
  close(): void;
  readonly running: number;
  readonly waiting: number;
  /** Prompt tokens of those that wait. */
  readonly waitingTokens: number;
};

export type AdmissionLimits = {
  maxRunning: number;
  maxWaiting: number;
  /** Prompt tokens that may wait; one request alone may have more. Default: no limit. */
  maxWaitingTokens?: number;
  /** Tokens a second that the queue is worked off with, for the time to come back. */
  tokensPerSecond?: () => number;
};

const shortestRetryMs = 1_000;
const longestRetryMs = 60_000;

/**
 * A bounded number of requests run; a bounded number, with a bounded number of prompt tokens, wait, the lower `priority` first, each priority in order;
 * the rest are refused with a time to come back.
 */
export function createAdmission(limits: AdmissionLimits): Admission {
  const { maxRunning, maxWaiting, maxWaitingTokens = Number.POSITIVE_INFINITY } = limits;
  type Waiter = { go: () => void; promptTokens: number; priority: number };
  const queue: Waiter[] = [];
  let running = 0;
  let closed = false;
  const waitingTokens = () => queue.reduce((sum, waiter) => sum + waiter.promptTokens, 0);

  const leave = () => {
    running -= 1;
    queue.shift()?.go();
  };

  const retryAfterMs = () => {
    const rate = limits.tokensPerSecond?.() ?? 0;
    const estimate = rate > 0 ? (waitingTokens() / rate) * 1000 : shortestRetryMs;
    return Math.round(Math.min(longestRetryMs, Math.max(shortestRetryMs, estimate)));
  };

  const check = (promptTokens = 0) => {
    if (closed) throw new Failure('unavailable', 'the server is draining', { reason: 'DRAINING', retryAfterMs: 1_000 });
    if (running < maxRunning) return;
    const tokens = waitingTokens();
    if (queue.length < maxWaiting && (tokens === 0 || tokens + promptTokens <= maxWaitingTokens)) return;
    throw new Failure(
      'resource_exhausted',
      `${running} requests run and ${queue.length} wait with ${tokens} tokens; come back later`,
      { reason: 'QUEUE_FULL', retryAfterMs: retryAfterMs() },
    );
  };

  return {
    check: () => check(),
    async enter(maxQueueMs, signal, { promptTokens = 0, priority = 0 } = {}) {
      check(promptTokens);
      signal.throwIfAborted();
      const since = performance.now();
      if (running >= maxRunning) {
        const limit = maxQueueMs > 0 ? AbortSignal.any([signal, AbortSignal.timeout(maxQueueMs)]) : signal;
        await new Promise<void>((resolve, reject) => {
          const go = () => {
            limit.removeEventListener('abort', giveUp);
            resolve();
          };
          const waiter: Waiter = { go, promptTokens, priority };
          const giveUp = () => {
            queue.splice(queue.indexOf(waiter), 1);
            reject(
              signal.aborted
                ? (signal.reason as Error)
                : new Failure('resource_exhausted', `waited ${maxQueueMs} ms for a place`, {
                    reason: 'QUEUE_TIMEOUT',
                    retryAfterMs: retryAfterMs(),
                  }),
            );
          };
          const before = queue.findIndex((other) => other.priority > priority);
          queue.splice(before < 0 ? queue.length : before, 0, waiter);
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
    get waitingTokens() {
      return waitingTokens();
    },
  };
}
