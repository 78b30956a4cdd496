import { Failure } from '@medmesh/errors';
import type { CallOptions, ClientMiddleware, ClientMiddlewareCall } from 'nice-grpc';
import type { CallGenerator } from './generators.ts';

export type DeadlineOptions = {
  /** How long the whole call may take, attempts and waits included. Infinity: for ever. */
  readonly deadlineMs?: number;
};

/** Passed to the inner middleware: the moment, in Unix ms, the call must be over. */
export type DeadlineAt = { readonly deadlineAt?: number };

/** Ends a call with `deadline_exceeded` when its time is over. Unary calls have `unaryMs` unless told; streams, no limit. */
export function limitTime(unaryMs: number): ClientMiddleware<DeadlineOptions, DeadlineAt> {
  return async function* limit<Request, Response>(
    call: ClientMiddlewareCall<Request, Response, DeadlineAt>,
    { deadlineMs, ...options }: CallOptions & DeadlineOptions & DeadlineAt,
  ): CallGenerator<Response> {
    const ms = deadlineMs ?? (call.requestStream || call.responseStream ? Number.POSITIVE_INFINITY : unaryMs);
    if (ms === Number.POSITIVE_INFINITY) return yield* call.next(call.request, options);

    const expired = new Failure(
      'deadline_exceeded',
      `${call.method.path.slice(1)} took longer than the ${Math.round(ms)} ms allowed`,
    );
    if (ms <= 0) throw expired;
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(expired), ms);
    const forwardAbort = () => controller.abort(options.signal?.reason);
    if (options.signal?.aborted) forwardAbort();
    else options.signal?.addEventListener('abort', forwardAbort, { once: true });
    try {
      return yield* call.next(call.request, { ...options, signal: controller.signal, deadlineAt: Date.now() + ms });
    } finally {
      clearTimeout(timer);
      options.signal?.removeEventListener('abort', forwardAbort);
    }
  };
}
