import { context, propagation, trace } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import { setGlobalErrorHandler, W3CTraceContextPropagator } from '@opentelemetry/core';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { defaultResource, resourceFromAttributes } from '@opentelemetry/resources';
import {
  BatchSpanProcessor,
  ParentBasedSampler,
  TraceIdRatioBasedSampler,
  TracerProvider,
} from '@opentelemetry/sdk-trace';
import { attribute } from './semconv.ts';

/** Spans waiting for the collector, at most; more are dropped, so a collector that is down costs bounded memory. */
const maxQueuedSpans = 4096;
const exportTimeoutMs = 5000;
/** How long an exit waits for the collector. */
const defaultFlushTimeoutMs = 2000;
/** A value longer than an identifier is cut: text does not belong in a span. */
const maxAttributeLength = 256;

let provider: TracerProvider | undefined;

/**
 * Starts tracing for this process; a second call changes nothing. Reads OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_ENDPOINT
 * (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, the whole URL), OTEL_TRACES_SAMPLER_ARG (share of root traces kept, 0 to 1,
 * default 1) and OTEL_SDK_DISABLED. Without an endpoint nothing is exported, while ids still travel and reach the log.
 */
export function startTelemetry(env: Readonly<Record<string, string | undefined>>): void {
  if (provider !== undefined || env['OTEL_SDK_DISABLED'] === 'true') return;
  const url = tracesUrl(env);
  provider = new TracerProvider({
    resource: defaultResource().merge(
      resourceFromAttributes({
        [attribute.serviceName]: env['OTEL_SERVICE_NAME'] || 'medmesh',
        [attribute.serviceNamespace]: 'medmesh',
        [attribute.processPid]: process.pid,
      }),
    ),
    sampler: new ParentBasedSampler({ root: new TraceIdRatioBasedSampler(sampledShare(env)) }),
    spanLimits: { attributeValueLengthLimit: maxAttributeLength },
    spanProcessors:
      url === undefined
        ? []
        : [
            new BatchSpanProcessor({
              exporter: new OTLPTraceExporter({ url, timeoutMillis: exportTimeoutMs }),
              maxQueueSize: maxQueuedSpans,
              exportTimeoutMillis: exportTimeoutMs,
              scheduledDelayMillis: 1000,
            }),
          ],
  });
  setGlobalErrorHandler(warnAtMostOnceAMinute(url));
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  // Trace context only: W3C baggage would carry whatever an outside caller wrote into it through the whole mesh.
  propagation.setGlobalPropagator(new W3CTraceContextPropagator());
  trace.setGlobalTracerProvider(provider);
  // For commands that end by themselves; a service flushes in its own shutdown.
  process.once('beforeExit', () => void flushTelemetry());
}

/** Sends the spans still queued. Resolves after at most `timeoutMs`, also when the collector is down; never rejects. */
export async function flushTelemetry(timeoutMs: number = defaultFlushTimeoutMs): Promise<void> {
  if (provider === undefined) return;
  const late = Promise.withResolvers<void>();
  const timer = setTimeout(late.resolve, timeoutMs);
  await Promise.race([provider.forceFlush().catch(() => undefined), late.promise]);
  clearTimeout(timer);
}

function tracesUrl(env: Readonly<Record<string, string | undefined>>): string | undefined {
  const whole = env['OTEL_EXPORTER_OTLP_TRACES_ENDPOINT'];
  if (whole) return whole;
  const base = env['OTEL_EXPORTER_OTLP_ENDPOINT'];
  return base ? `${base.replace(/\/+$/, '')}/v1/traces` : undefined;
}

function sampledShare(env: Readonly<Record<string, string | undefined>>): number {
  const share = Number(env['OTEL_TRACES_SAMPLER_ARG'] || '1');
  return share >= 0 && share <= 1 ? share : 1;
}

/** One JSON line on stderr, for the day spans go missing. The exporter's own error is left out: it may quote a response. */
function warnAtMostOnceAMinute(url: string | undefined): () => void {
  let quietUntil = 0;
  return () => {
    if (Date.now() < quietUntil) return;
    quietUntil = Date.now() + 60_000;
    process.stderr.write(
      `${JSON.stringify({ level: 'warn', msg: 'spans could not be delivered and were dropped', endpoint: url })}\n`,
    );
  };
}
