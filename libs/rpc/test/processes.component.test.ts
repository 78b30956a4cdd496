import { readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type CollectedSpan, type OtlpCollector, runProcess, spawnProcess, startOtlp } from '@medmesh/testkit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

// Two real processes, each started as services are, because telemetry that is started too late fails without a sound.
const packageDir = fileURLToPath(new URL('..', import.meta.url));
const fixture = (name: string) => [
  '--import',
  '@medmesh/telemetry/register',
  fileURLToPath(new URL(`./fixtures/${name}`, import.meta.url)),
];
const service = 'medmesh.test.v1.EchoService';
const canary = 'Mrs. Okonkwo has chest pain';

let collector: OtlpCollector;
let spans: readonly CollectedSpan[];
const metricsFile = join(tmpdir(), `medmesh-rpc-metrics-${process.pid}`);
const output = { server: '', client: '', metrics: '' };

beforeAll(async () => {
  collector = await startOtlp();
  const environment = (name: string) => ({ OTEL_SERVICE_NAME: name, OTEL_EXPORTER_OTLP_ENDPOINT: collector.endpoint });
  const server = await spawnProcess({
    command: process.execPath,
    args: fixture('echo-server.ts'),
    cwd: packageDir,
    env: { ...environment('echo-server'), METRICS_FILE: metricsFile },
    ready: /listening on (\d+)/,
  });
  output.client = await runProcess({
    command: process.execPath,
    args: fixture('echo-client.ts'),
    cwd: packageDir,
    env: { ...environment('echo-client'), SERVER: `127.0.0.1:${server.ready?.[1]}`, CANARY: canary },
  });
  const { code } = await server.stop();
  if (code !== 0) throw new Error(`the server exited with ${code}:\n${server.stderr()}`);
  output.server = server.stdout() + server.stderr();
  output.metrics = readFileSync(metricsFile, 'utf8');
  spans = collector.spans();
});
afterAll(async () => {
  await collector.stop();
  rmSync(metricsFile, { force: true });
});

describe('a trace over two processes', () => {
  test.each(['Say', 'Generate', 'Collect'])(
    'has a CLIENT span under the caller and a SERVER span under that, for %s',
    (method) => {
      const root = spans.find((s) => s.name === 'ask');
      const ofTrace = spans.filter((s) => s.traceId === root?.traceId && s.name === `${service}/${method}`);
      const client = ofTrace.find((s) => s.kind === 'client');
      const server = ofTrace.find((s) => s.kind === 'server');
      expect(ofTrace).toHaveLength(2);
      expect(client).toMatchObject({ service: 'echo-client', parentSpanId: root?.spanId, status: 'unset' });
      expect(server).toMatchObject({ service: 'echo-server', parentSpanId: client?.spanId, status: 'unset' });
      const attributes = {
        'rpc.system.name': 'grpc',
        'rpc.method': `${service}/${method}`,
        'rpc.response.status_code': 'OK',
      };
      expect(client?.attributes).toMatchObject({ ...attributes, 'server.address': '127.0.0.1' });
      expect(server?.attributes).toMatchObject(attributes);
    },
  );

  test("has what the handler does under the server's span, and its log lines carry the trace", () => {
    const root = spans.find((s) => s.name === 'ask');
    const inner = spans.find((s) => s.traceId === root?.traceId && s.name === 'look up');
    const server = spans.find((s) => s.spanId === inner?.parentSpanId);
    expect(server).toMatchObject({ kind: 'server', name: `${service}/Say` });
    const lines = output.server
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    const ofTrace = lines.filter((line) => line['trace_id'] === root?.traceId);
    expect(ofTrace.find((line) => line['msg'] === 'inside the handler')).toMatchObject({ span_id: inner?.spanId });
    expect(ofTrace.find((line) => line['msg'] === 'call' && line['method'] === `${service}/Say`)).toMatchObject({
      code: 'OK',
      span_id: server?.spanId,
    });
  });

  test("marks the caller's span of every failure, and the server's only for its own faults", () => {
    const failed = (kind: string, status: string) =>
      spans.filter((s) => s.kind === kind && s.attributes['rpc.response.status_code'] === status).map((s) => s.status);
    expect(failed('client', 'INVALID_ARGUMENT')).toEqual(['error']);
    expect(failed('server', 'INVALID_ARGUMENT')).toEqual(['unset']);
    expect(failed('client', 'INTERNAL')).toEqual(Array(4).fill('error'));
    expect(failed('server', 'INTERNAL')).toEqual(Array(4).fill('error'));
    expect(failed('server', 'UNIMPLEMENTED')).toEqual(['error']);
  });
});

describe('metrics', () => {
  test('count every call by method and status, in seconds, with the trace as exemplar', () => {
    const count = (method: string, code: string) =>
      output.metrics.match(
        new RegExp(
          `^rpc_server_call_duration_seconds_count\\{.*rpc_method="${service}/${method}",rpc_response_status_code="${code}".*\\} (\\d+)$`,
          'm',
        ),
      )?.[1];
    expect(count('Say', 'OK')).toBe('1');
    expect(count('Say', 'INTERNAL')).toBe('3');
    expect(count('Say', 'INVALID_ARGUMENT')).toBe('1');
    expect(count('Generate', 'INTERNAL')).toBe('1');
    expect(count('GetNote', 'UNIMPLEMENTED')).toBe('1');
    const exemplars = [
      ...output.metrics.matchAll(/^rpc_server_call_duration_seconds_bucket.* # \{trace_id="([0-9a-f]{32})"/gm),
    ].map((m) => m[1]);
    expect(exemplars).toContain(spans.find((s) => s.name === 'ask')?.traceId);
  });
});

describe('patient text in requests, responses and errors', () => {
  test('is in no log line, span, metric or error message', () => {
    const traces = JSON.stringify(spans, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value));
    expect(spans.length).toBeGreaterThan(15);
    expect(output.server).toContain('UNFORESEEN');
    expect(output.client).toContain('TEXT_REFUSED');
    for (const word of ['Okonkwo', 'chest pain', canary]) {
      for (const text of [traces, output.server, output.client, output.metrics]) expect(text).not.toContain(word);
    }
  });
});
