import { Failure } from '@medmesh/errors';
import type { CallContext, ServerMiddleware, ServerMiddlewareCall } from 'nice-grpc';
import { type CallGenerator, endedBy } from './generators.ts';
import { isEndless } from './method.ts';

export type Terminator = {
  readonly middleware: ServerMiddleware;
  /** Ends streams that would never end by themselves (watches) with UNAVAILABLE. */
  endWatches(): void;
  /** Ends every call still open with UNAVAILABLE, whether or not its handler looks at its signal. */
  endAll(): void;
};

/** What a caller sees of a process that is going away: another one will answer the same call. */
const shuttingDown = () =>
  new Failure('unavailable', 'this process is shutting down; call again', {
    reason: 'SHUTTING_DOWN',
    retryAfterMs: 100,
  });

/** Lets a server end the calls it is in; gRPC's own graceful shutdown would wait for a watch for ever. */
export function createTerminator(): Terminator {
  const watches = new AbortController();
  const all = new AbortController();
  return {
    endWatches: () => watches.abort(shuttingDown()),
    endAll: () => all.abort(shuttingDown()),
    middleware: function terminate<Request, Response>(
      call: ServerMiddlewareCall<Request, Response>,
      context: CallContext,
    ): CallGenerator<Response> {
      const end =
        call.responseStream && isEndless(call.method) ? AbortSignal.any([watches.signal, all.signal]) : all.signal;
      const signal = AbortSignal.any([context.signal, end]);
      return endedBy<Response>(end, call.next(call.request, { ...context, signal }));
    },
  };
}
