import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { fileURLToPath } from 'node:url';
import { type OtlpCollector, runProcess, startOtlp } from '@medmesh/testkit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const packageDir = fileURLToPath(new URL('..', import.meta.url));
const stored = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';

const runFixture = (name: string, env: Record<string, string | undefined>) =>
  runProcess({
    command: process.execPath,
    args: ['--import', '@medmesh/telemetry/register', fileURLToPath(new URL(`./fixtures/${name}`, import.meta.url))],
    cwd: packageDir,
    env: { OTEL_EXPORTER_OTLP_ENDPOINT: undefined, OTEL_SERVICE_NAME: 'fixture', ...env },
    timeoutMs: 20_000,
  });

describe('a process started with --import', () => {
  let collector: OtlpCollector;
  beforeAll(async () => {
    collector = await startOtlp();
    await runFixture('program.ts', { OTEL_EXPORTER_OTLP_ENDPOINT: collector.endpoint, STORED_TRACEPARENT: stored });
  });
  afterAll(() => collector.stop());
  const span = (name: string) => {
    const found = collector.spans().find((s) => s.name === name);
    if (found === undefined)
      throw new Error(
        `no span ${name} among ${collector
          .spans()
          .map((s) => s.name)
          .join(', ')}`,
      );
    return found;
  };

  test('delivers its spans before it ends, under its service name', () => {
    expect(span('parent')).toMatchObject({
      service: 'fixture',
      kind: 'producer',
      attributes: { 'medmesh.job.id': 'job-1' },
    });
  });

  test('nests a span under the active one', () => {
    expect(span('child')).toMatchObject({ traceId: span('parent').traceId, parentSpanId: span('parent').spanId });
  });

  test('records spans of a CommonJS library that took its tracer at load', () => {
    expect(span('from a CommonJS library')).toMatchObject({
      scope: 'cjs-library',
      parentSpanId: span('parent').spanId,
    });
  });

  test('continues a stored trace, and links to it', () => {
    const [, traceId, spanId] = stored.split('-');
    expect(span('later')).toMatchObject({
      traceId,
      parentSpanId: spanId,
      kind: 'consumer',
      links: [{ traceId, spanId }],
    });
  });

  test("marks a failed span by the error's type and keeps its message out", () => {
    expect(span('child')).toMatchObject({ status: 'error', attributes: { 'error.type': 'RangeError' }, events: [] });
    expect(JSON.stringify(collector.spans(), (_, v: unknown) => (typeof v === 'bigint' ? Number(v) : v))).not.toContain(
      'Okonkwo',
    );
  });
});

describe('without a collector', () => {
  test('ids still exist, so that they travel and reach the log', async () => {
    expect(await runFixture('program.ts', {})).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-01\n$/);
  });

  test('that listens, ten thousand spans neither fail nor slow the process', async () => {
    const { spansMs, flushMs } = JSON.parse(
      await runFixture('many-spans.ts', { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:1' }),
    ) as Record<string, number>;
    // A span that waited for the collector would take a millisecond and more.
    expect(spansMs).toBeLessThan(10_000);
    expect(flushMs).toBeLessThan(8_000);
  });

  test('that answers, the flush gives up after two seconds', async () => {
    const blackHole = createServer(() => undefined).listen(0, '127.0.0.1');
    await once(blackHole, 'listening');
    const endpoint = `http://127.0.0.1:${(blackHole.address() as AddressInfo).port}`;
    try {
      const { flushMs } = JSON.parse(
        await runFixture('many-spans.ts', { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint }),
      ) as Record<string, number>;
      // The exporter itself would wait for ten.
      expect(flushMs).toBeLessThan(8_000);
    } finally {
      blackHole.close();
    }
  });
});
