import { TraceFlags, trace } from '@opentelemetry/api';
import { Counter, collectDefaultMetrics, Gauge, Histogram, type OpenMetricsContentType, Registry } from 'prom-client';

type Labels = Readonly<Record<string, string | number>>;

export type HistogramOptions = {
  readonly name: string;
  readonly help: string;
  readonly labelNames?: readonly string[];
  /** Upper bounds, ascending, in the metric's unit. */
  readonly buckets: readonly number[];
};
export type InstrumentOptions = {
  readonly name: string;
  readonly help: string;
  readonly labelNames?: readonly string[];
};
export type GaugeOptions = InstrumentOptions & {
  /** Called at every scrape, for a value that is read rather than counted; it sets the gauge by the setter given. */
  readonly collect?: (set: (value: number, labels?: Labels) => void) => void;
};

/** The metrics of one process. Asking twice for a name gives the same instrument. */
export type Metrics = {
  /** Seconds, bytes or counts by bucket. An observation inside a sampled span carries its trace as exemplar. */
  histogram(o: HistogramOptions): { observe(value: number, labels?: Labels): void };
  /** Only rises. OpenMetrics wants names that end in `_total`. */
  counter(o: InstrumentOptions): { add(value?: number, labels?: Labels): void };
  gauge(o: GaugeOptions): { set(value: number, labels?: Labels): void };
  /** What a scrape answers, in OpenMetrics text; `contentType` goes with it. */
  text(): Promise<string>;
  readonly contentType: string;
  readonly registry: Registry<OpenMetricsContentType>;
};

/**
 * A registry of its own for `service`, with the defaults of the process in it: CPU, memory, handles, garbage collection
 * and event-loop delay. OpenMetrics rather than the older text format, because only it carries exemplars.
 */
export function createMetrics(service: string): Metrics {
  const registry = new Registry<OpenMetricsContentType>();
  registry.setContentType(Registry.OPENMETRICS_CONTENT_TYPE);
  registry.setDefaultLabels({ service });
  collectDefaultMetrics({ register: registry as unknown as Registry });
  const registers = [registry as unknown as Registry];

  const instruments = new Map<string, unknown>();
  const once = <T>(name: string, create: () => T): T => {
    const known = instruments.get(name) as T | undefined;
    if (known !== undefined) return known;
    const made = create();
    instruments.set(name, made);
    return made;
  };

  return {
    registry,
    contentType: registry.contentType,
    text: () => registry.metrics(),
    histogram: ({ name, help, labelNames = [], buckets }) =>
      once(name, () => {
        const histogram = new Histogram({
          name,
          help,
          labelNames: [...labelNames],
          buckets: [...buckets],
          enableExemplars: true,
          registers,
        });
        return {
          observe: (value, labels = {}) => histogram.observe({ labels, value, exemplarLabels: exemplarOfActiveSpan() }),
        };
      }),
    counter: ({ name, help, labelNames = [] }) =>
      once(name, () => {
        const counter = new Counter({ name, help, labelNames: [...labelNames], registers });
        return { add: (value = 1, labels = {}) => counter.inc(labels, value) };
      }),
    gauge: ({ name, help, labelNames = [], collect }) =>
      once(name, () => {
        const set = (value: number, labels: Labels = {}) => gauge.set(labels, value);
        const gauge = new Gauge({
          name,
          help,
          labelNames: [...labelNames],
          registers,
          ...(collect === undefined ? {} : { collect: () => collect(set) }),
        });
        return { set };
      }),
  };
}

function exemplarOfActiveSpan(): Record<string, string> {
  const span = trace.getActiveSpan()?.spanContext();
  if (span === undefined || (span.traceFlags & TraceFlags.SAMPLED) === 0) return {};
  return { trace_id: span.traceId, span_id: span.spanId };
}
