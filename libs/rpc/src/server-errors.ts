import { Failure, toFailure } from '@medmesh/errors';
import { rpc } from '@medmesh/proto';
import { type CallContext, ServerError, type ServerMiddlewareCall } from 'nice-grpc';
import { remainingMs } from './deadline.ts';
import { type CallGenerator, withErrors } from './generators.ts';
import { statusDetailsTrailer, toStatus } from './status.ts';

/** A Failure on its way out: the status gRPC sends, and the Failure for the log. */
export class FailedCall extends ServerError {
  readonly failure: Failure;

  constructor(failure: Failure) {
    const { code, message } = toStatus(failure);
    super(code, message);
    this.failure = failure;
  }
}

/** Turns whatever a handler throws into a status with details. A ServerError (a forwarded one, a health answer) passes. */
export function translateErrors<Request, Response>(
  call: ServerMiddlewareCall<Request, Response>,
  context: CallContext,
): CallGenerator<Response> {
  return withErrors(call.next(call.request, context), (e) => {
    if (e instanceof ServerError) return e;
    const failure = failureOf(e, context);
    context.trailer.set(statusDetailsTrailer, rpc.Status.encode(toStatus(failure)).finish());
    return new FailedCall(failure);
  });
}

function failureOf(e: unknown, context: CallContext): Failure {
  const failure = toFailure(e);
  // gRPC aborts a call alike when its deadline passes and when the caller hangs up; the clock tells them apart.
  const late = failure.code === 'cancelled' && context.signal.aborted && (remainingMs(context) ?? 1) <= 0;
  return late ? new Failure('deadline_exceeded', "the call's deadline passed", { cause: e }) : failure;
}
