import { type Context, context, isSpanContextValid, propagation, ROOT_CONTEXT, trace } from '@opentelemetry/api';

/** Headers of a message: gRPC metadata and NATS headers both have this shape. */
export type HeaderCarrier = { get(name: string): unknown; set(name: string, value: string): unknown };

/** Writes the active span (or that of `from`) into headers, as `traceparent` and `tracestate`. */
export function injectHeaders(headers: HeaderCarrier, from: Context = context.active()): void {
  propagation.inject(from, headers, { set: (carrier, name, value) => void carrier.set(name, value) });
}

/** The context headers carry; the root context when they carry none or an invalid one. */
export function extractHeaders(headers: Pick<HeaderCarrier, 'get'>): Context {
  return propagation.extract(ROOT_CONTEXT, headers, {
    keys: () => [],
    get: (carrier, name) => {
      const value = carrier.get(name);
      return typeof value === 'string' && value !== '' ? value : undefined;
    },
  });
}

/** The active span as a W3C traceparent, to store in a record and continue from later. */
export function activeTraceparent(): string | undefined {
  const span = trace.getActiveSpan()?.spanContext();
  if (span === undefined || !isSpanContextValid(span)) return undefined;
  return `00-${span.traceId}-${span.spanId}-${span.traceFlags.toString(16).padStart(2, '0')}`;
}

/** The context of a stored traceparent; the root context when there is none or it is malformed. */
export function contextFromTraceparent(traceparent: string | undefined): Context {
  return extractHeaders({ get: (name) => (name === 'traceparent' ? traceparent : undefined) });
}

/** The active trace's id, 32 hex digits, for a message a person may quote. */
export function traceId(): string | undefined {
  const span = trace.getActiveSpan()?.spanContext();
  return span !== undefined && isSpanContextValid(span) ? span.traceId : undefined;
}
