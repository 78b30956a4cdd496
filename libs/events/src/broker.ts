import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import { JetStreamApiError, JetStreamError } from '@nats-io/jetstream';
import { errors } from '@nats-io/transport-node';

/** JetStream's own "not now": no leader, still recovering, storage busy. */
const serviceUnavailable = 503;

/** How long one question to the broker may take. Short, because an answer that was lost in a restart never comes. */
export const answerTimeoutMs = 2_000;

/** What a caller waits for at most when it gives no signal. */
const defaultPatienceMs = 30_000;
const firstPauseMs = 50;
const longestPauseMs = 2_000;

/** Whether an error means that the broker did not answer, so that the same call may succeed once it is back. */
export function isBrokerAway(error: unknown): boolean {
  if (error instanceof errors.TimeoutError || error instanceof errors.NoRespondersError) return true;
  if (error instanceof errors.ConnectionError || hasName(error, 'JetStreamNotEnabled')) return true;
  if (error instanceof errors.RequestError) return error.isNoResponders() || isBrokerAway(error.cause);
  if (error instanceof JetStreamApiError) return error.status === serviceUnavailable;
  // A status message in place of an answer, e.g. "no responders" to a pull.
  return error instanceof JetStreamError && 'code' in error && error.code === serviceUnavailable;
}

/** The client exports its errors by class only in part. */
const hasName = (error: unknown, name: string): boolean => error instanceof Error && error.name === name;

/**
 * Calls `attempt` until the broker answers it, pausing longer each time. Any other error, and any refusal, goes to the caller at once.
 * `attempt` may have taken effect before its answer was lost: it must be safe to repeat.
 * Waits until `signal` aborts (its reason is thrown); without a signal, 30 s.
 * @throws Failure `unavailable` BROKER_UNAVAILABLE, naming `what` was to be done.
 */
export async function untilBrokerAnswers<T>(
  what: string,
  attempt: () => Promise<T>,
  o: { signal?: AbortSignal | undefined; patienceMs?: number } = {},
): Promise<T> {
  const patienceMs = o.patienceMs ?? (o.signal === undefined ? defaultPatienceMs : Number.POSITIVE_INFINITY);
  const started = performance.now();
  for (let pauseMs = firstPauseMs; ; pauseMs = Math.min(2 * pauseMs, longestPauseMs)) {
    o.signal?.throwIfAborted();
    try {
      return await orAbort(attempt(), o.signal);
    } catch (error) {
      if (error instanceof errors.ClosedConnectionError || error instanceof errors.DrainingConnectionError) {
        throw new Failure('unavailable', `the connection to the message broker is closed; could not ${what}`, {
          reason: 'BROKER_UNAVAILABLE',
          cause: error,
        });
      }
      if (!isBrokerAway(error)) throw error;
      const waitedMs = performance.now() - started;
      if (waitedMs + pauseMs > patienceMs) {
        const seconds = (waitedMs / 1000).toFixed(0);
        throw new Failure('unavailable', `the message broker did not answer for ${seconds} s; could not ${what}`, {
          reason: 'BROKER_UNAVAILABLE',
          retryAfterMs: longestPauseMs,
          cause: error,
        });
      }
    }
    await pause(pauseMs * (0.5 + Math.random() / 2), o.signal);
  }
}

const aborted = Symbol('aborted');

/** The promise's outcome, or the signal's reason if it aborts first: a lost answer is not waited for. */
async function orAbort<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  let onAbort = (): void => undefined;
  const abort = new Promise<typeof aborted>((resolve) => {
    onAbort = () => resolve(aborted);
    signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    const outcome = await Promise.race([promise, abort]);
    if (outcome !== aborted) return outcome;
    throw signal.reason;
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

/** Waits; throws the signal's own reason if it aborts first. */
export async function pause(ms: number, signal?: AbortSignal): Promise<void> {
  await sleep(ms, undefined, signal === undefined ? {} : { signal }).catch(() => signal?.throwIfAborted());
}
