import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import type { CallOptions, ClientMiddleware, ClientMiddlewareCall } from 'nice-grpc';
import type { DeadlineAt } from './client-deadline.ts';
import type { CallGenerator } from './generators.ts';
import { isRepeatable } from './method.ts';

export type RetryOptions = {
  /** Whether to repeat the call while the server is unavailable. Default: when it is safe to repeat. */
  readonly retry?: boolean;
};

const maxAttempts = 6;
const firstWaitMs = 100;
const maxWaitMs = 3_000;

/** Repeats a unary call that ended `unavailable`, after a growing random wait or the one the server asked for. */
export const repeatUnavailable: ClientMiddleware<RetryOptions, DeadlineAt> = async function* repeat<Request, Response>(
  call: ClientMiddlewareCall<Request, Response, DeadlineAt>,
  { retry, ...options }: CallOptions & RetryOptions & DeadlineAt,
): CallGenerator<Response> {
  if (call.requestStream || call.responseStream || !(retry ?? isRepeatable(call.method, call.request))) {
    return yield* call.next(call.request, options);
  }
  for (let attempt = 1; ; attempt++) {
    try {
      return yield* call.next(call.request, options);
    } catch (e) {
      if (!(e instanceof Failure) || e.code !== 'unavailable' || attempt === maxAttempts) throw e;
      const backoffMs = Math.min(maxWaitMs, firstWaitMs * 2 ** (attempt - 1)) * (0.5 + Math.random());
      const waitMs = Math.max(e.retryAfterMs ?? 0, backoffMs);
      // Out of time either way: that the server is unavailable says more than that the deadline passed.
      if (options.deadlineAt !== undefined && Date.now() + waitMs >= options.deadlineAt) throw e;
      await sleep(waitMs, undefined, options.signal === undefined ? {} : { signal: options.signal });
    }
  }
};
