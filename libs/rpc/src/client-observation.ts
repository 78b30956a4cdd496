import {
  attribute,
  callDurationBuckets,
  failSpan,
  injectHeaders,
  type Metrics,
  metric,
  startSpan,
} from '@medmesh/telemetry';
import { context as otelContext } from '@opentelemetry/api';
import {
  type CallOptions,
  ClientError,
  type ClientMiddleware,
  type ClientMiddlewareCall,
  Metadata,
  Status,
} from 'nice-grpc';
import type { DeadlineAt } from './client-deadline.ts';
import { formatTimeout, timeoutHeader } from './deadline.ts';
import { type CallGenerator, withinContext } from './generators.ts';
import { isHousekeeping, methodName } from './method.ts';
import { statusName } from './status.ts';

/**
 * One CLIENT span and one observation of `rpc_client_call_duration_seconds` per attempt, and the two headers that go
 * with it: the trace and the time left.
 */
export function observeAttempts(o: {
  metrics?: Metrics | undefined;
  target?: string | undefined;
}): ClientMiddleware<DeadlineAt> {
  const duration = o.metrics?.histogram({
    name: metric.rpcClientCallDuration,
    help: 'Time from sending a call to receiving its status, one observation per attempt.',
    labelNames: ['rpc_method', 'rpc_response_status_code'],
    buckets: callDurationBuckets,
  });
  const peer = peerAttributes(o.target);

  return async function* observe<Request, Response>(
    call: ClientMiddlewareCall<Request, Response>,
    { deadlineAt, ...options }: CallOptions & DeadlineAt,
  ): CallGenerator<Response> {
    const metadata = Metadata(options.metadata);
    if (deadlineAt !== undefined) metadata.set(timeoutHeader, formatTimeout(deadlineAt - Date.now()));
    if (isHousekeeping(call.method)) return yield* call.next(call.request, { ...options, metadata });

    const method = methodName(call.method);
    const started = performance.now();
    const { span, context: inside } = startSpan(method, {
      kind: 'client',
      attributes: { [attribute.rpcSystemName]: 'grpc', [attribute.rpcMethod]: method, ...peer },
    });
    injectHeaders(metadata, inside);

    let code: number = Status.OK;
    let ended = false;
    try {
      const result = yield* withinContext(inside, call.next(call.request, { ...options, metadata }));
      ended = true;
      return result;
    } catch (e) {
      ended = true;
      code = e instanceof ClientError ? e.code : options.signal?.aborted === true ? Status.CANCELLED : Status.UNKNOWN;
      throw e;
    } finally {
      // A reader that leaves a stream early cancels it: an ordinary end, though not an OK one.
      const name = statusName(ended ? code : Status.CANCELLED);
      span.setAttribute(attribute.rpcResponseStatusCode, name);
      if (ended && code !== Status.OK) failSpan(span, name);
      otelContext.with(inside, () =>
        duration?.observe((performance.now() - started) / 1000, { rpc_method: method, rpc_response_status_code: name }),
      );
      span.end();
    }
  };
}

/** `dns:///host:port` → server.address and server.port. */
function peerAttributes(target: string | undefined): Record<string, string | number> {
  const match = /^(?:dns:(?:\/\/[^/]*\/)?)?(.+):(\d+)$/.exec(target ?? '');
  if (match?.[1] === undefined) return {};
  return { [attribute.serverAddress]: match[1], [attribute.serverPort]: Number(match[2]) };
}
