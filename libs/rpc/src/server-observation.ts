import type { Logger } from '@medmesh/log';
import {
  attribute,
  callDurationBuckets,
  extractHeaders,
  failSpan,
  type Metrics,
  metric,
  startSpan,
} from '@medmesh/telemetry';
import { context as otelContext } from '@opentelemetry/api';
import { type CallContext, ServerError, type ServerMiddleware, type ServerMiddlewareCall, Status } from 'nice-grpc';
import { remainingMs } from './deadline.ts';
import { type CallGenerator, withEnd, withinContext } from './generators.ts';
import { isHousekeeping, methodName } from './method.ts';
import { FailedCall } from './server-errors.ts';
import { statusName } from './status.ts';

/** Statuses that are this process's own doing. The others answer a caller's mistake and are no fault of the span. */
const serverFaults = new Set<number>([
  Status.UNKNOWN,
  Status.DEADLINE_EXCEEDED,
  Status.UNIMPLEMENTED,
  Status.INTERNAL,
  Status.UNAVAILABLE,
  Status.DATA_LOSS,
]);
/** Statuses someone should look at; an UNAVAILABLE or a passed deadline is a warning. */
const defects = new Set<number>([Status.UNKNOWN, Status.INTERNAL, Status.DATA_LOSS]);

/**
 * One SERVER span, one log line and one observation of `rpc_server_call_duration_seconds` per call. All three carry
 * the method, the status and the time: nothing of a request or a response.
 */
export function observeCalls(o: { log: Logger; metrics?: Metrics | undefined }): ServerMiddleware {
  const duration = o.metrics?.histogram({
    name: metric.rpcServerCallDuration,
    help: 'Time from the first byte of a call to its status.',
    labelNames: ['rpc_method', 'rpc_response_status_code'],
    buckets: callDurationBuckets,
  });

  return function observe<Request, Response>(
    call: ServerMiddlewareCall<Request, Response>,
    context: CallContext,
  ): CallGenerator<Response> {
    const method = methodName(call.method);
    const started = performance.now();
    const quiet = isHousekeeping(call.method);
    const traced = quiet
      ? undefined
      : startSpan(method, {
          kind: 'server',
          parent: extractHeaders(context.metadata),
          attributes: { [attribute.rpcSystemName]: 'grpc', [attribute.rpcMethod]: method },
        });
    const inside = traced?.context ?? otelContext.active();

    return withEnd(withinContext(inside, call.next(call.request, context)), (error) => {
      const ms = performance.now() - started;
      const code = statusOf(error, context);
      const name = statusName(code);
      const failure = error instanceof FailedCall ? error.failure : undefined;
      traced?.span.setAttribute(attribute.rpcResponseStatusCode, name);
      if (traced !== undefined && serverFaults.has(code)) failSpan(traced.span, failure?.reason ?? name);
      otelContext.with(inside, () => {
        duration?.observe(ms / 1000, { rpc_method: method, rpc_response_status_code: name });
        if (quiet) return;
        const line = {
          method,
          code: name,
          ms: Math.round(ms * 10) / 10,
          ...(failure === undefined ? {} : { reason: failure.reason }),
        };
        if (defects.has(code)) o.log.error({ ...line, err: failure }, 'call failed');
        else if (serverFaults.has(code)) o.log.warn({ ...line, err: failure }, 'call failed');
        else o.log.info(line, 'call');
      });
      traced?.span.end();
    });
  };
}

function statusOf(error: unknown, context: CallContext): number {
  if (error instanceof ServerError) return error.code;
  if (error !== undefined) return Status.UNKNOWN;
  // A stream whose reader went away is ended from outside, without an error.
  if (!context.signal.aborted) return Status.OK;
  return (remainingMs(context) ?? 1) <= 0 ? Status.DEADLINE_EXCEEDED : Status.CANCELLED;
}
