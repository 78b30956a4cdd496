import { beforeAll, describe, expect, test } from 'vitest';
import { createMetrics, startTelemetry, traceId, withSpan } from '../src/index.ts';

beforeAll(() => startTelemetry({}));

describe('createMetrics', () => {
  test('answers OpenMetrics with the process defaults and event-loop delay', async () => {
    const metrics = createMetrics('quantizer');
    const text = await metrics.text();
    expect(metrics.contentType).toContain('application/openmetrics-text');
    expect(text).toMatch(/^process_resident_memory_bytes\{service="quantizer"\} \d+/m);
    expect(text).toMatch(/^nodejs_eventloop_lag_p99_seconds\{service="quantizer"\}/m);
    expect(text.trimEnd().endsWith('# EOF')).toBe(true);
  });

  test('an observation inside a span carries its trace as exemplar, one outside carries none', async () => {
    const metrics = createMetrics('x');
    const wait = metrics.histogram({
      name: 'queue_wait_seconds',
      help: 'Wait.',
      labelNames: ['queue'],
      buckets: [0.1, 1],
    });
    wait.observe(0.05, { queue: 'outside' });
    const id = await withSpan('work', {}, () => {
      wait.observe(0.5, { queue: 'inside' });
      return traceId();
    });
    const lines = (await metrics.text()).split('\n').filter((line) => line.startsWith('queue_wait_seconds_bucket'));
    expect(lines.filter((line) => line.includes('trace_id='))).toHaveLength(1);
    expect(lines.find((line) => line.includes('trace_id='))).toMatch(
      new RegExp(`le="1".*queue="inside".*\\} 1 # \\{trace_id="${id}",span_id="[0-9a-f]{16}"\\} 0\\.5`),
    );
  });

  test('counters count and gauges are read at the scrape', async () => {
    const metrics = createMetrics('x');
    metrics.counter({ name: 'events_total', help: 'Events.', labelNames: ['kind'] }).add(2, { kind: 'a' });
    metrics.counter({ name: 'events_total', help: 'Events.', labelNames: ['kind'] }).add(1, { kind: 'a' });
    let depth = 1;
    metrics.gauge({ name: 'depth', help: 'Depth.', collect: (set) => set(depth) });
    depth = 4;
    const text = await metrics.text();
    expect(text).toMatch(/^events_total\{kind="a",service="x"\} 3$/m);
    expect(text).toMatch(/^depth\{service="x"\} 4$/m);
  });

  test('two registries of one process do not meet', async () => {
    createMetrics('a').counter({ name: 'only_here_total', help: 'x' }).add();
    expect(await createMetrics('b').text()).not.toContain('only_here');
  });
});
