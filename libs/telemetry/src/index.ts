export {
  createMetrics,
  type GaugeOptions,
  type HistogramOptions,
  type InstrumentOptions,
  type Metrics,
} from './metrics.ts';
export { attribute, callDurationBuckets, metric } from './semconv.ts';
export { flushTelemetry, startTelemetry } from './start-telemetry.ts';
export {
  activeTraceparent,
  contextFromTraceparent,
  extractHeaders,
  type HeaderCarrier,
  injectHeaders,
  traceId,
} from './trace-context.ts';
export { errorType, failSpan, type SpanOptions, startSpan, withSpan } from './with-span.ts';
