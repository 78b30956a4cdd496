import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { longrunning } from '@medmesh/proto';
import { createClient } from '@medmesh/rpc';
import {
  freePort,
  type NatsServer,
  type RunningProcess,
  repositoryRoot,
  s3Missing,
  spawnProcess,
  startNats,
  startOtlp,
  startS3,
  tempDir,
} from '@medmesh/testkit';
import { afterAll, beforeAll, expect, test } from 'vitest';

let nats: NatsServer;
beforeAll(async () => {
  nats = await startNats();
});
afterAll(async () => nats.stop());

type Environment = Record<string, string | undefined>;

const start = (env: Environment, o: { args?: string[]; ready?: RegExp } = {}): Promise<RunningProcess> =>
  spawnProcess({
    command: process.execPath,
    args: [
      '--import',
      `${repositoryRoot}/libs/telemetry/src/register.ts`,
      `${repositoryRoot}/libs/service/test/tiny-service.ts`,
      ...(o.args ?? []),
    ],
    env: {
      NATS_URL: nats.url,
      OBJECT_STORE_URL: `file://${tempDir('objects')}`,
      CACHE_DIR: tempDir('cache'),
      SHUTDOWN_GRACE_MS: '20000',
      ...env,
    },
    ...(o.ready === undefined ? {} : { ready: o.ready }),
  });

async function startReady(env: Environment = {}) {
  const portFile = join(tempDir('ports'), 'ports.json');
  const service = await start({ PORT_FILE: portFile, ...env }, { ready: /tiny is ready/ });
  const ports = JSON.parse(readFileSync(portFile, 'utf8')) as { grpc: number; metrics: number };
  const client = createClient(longrunning.OperationsDefinition, `127.0.0.1:${ports.grpc}`);
  const http = (path: string) => fetch(`http://127.0.0.1:${ports.metrics}${path}`);
  return { service, ports, client, http, portFile };
}

const record = (line: string): Record<string, unknown> => JSON.parse(line) as Record<string, unknown>;
const fatalLines = (service: RunningProcess) => service.lines().filter((line) => line.includes('"level":"fatal"'));

test('--help, --print-config and --version answer and end, without a server anywhere', async () => {
  for (const [argument, text] of [
    ['--help', 'The tiny service of medmesh'],
    ['--print-config', 'SLOW_MS'],
    ['--version', '0.1.0'],
  ] as const) {
    const service = await start({ NATS_URL: 'nats://127.0.0.1:1', OBJECT_STORE_URL: undefined }, { args: [argument] });
    expect((await service.exited).code).toBe(0);
    expect(service.stdout()).toContain(text);
  }
  const service = await start({}, { args: ['--verbose'] });
  expect((await service.exited).code).toBe(2);
  expect(service.stderr()).toContain('unknown arguments --verbose; see --help');
});

test('a bad environment is refused with every fault listed and no secret shown', async () => {
  const service = await start({
    GRPC_PORT: 'many',
    SLOW_MS: '-1',
    OBJECT_STORE_URL: 'ftp://x',
    S3_SECRET_KEY: 's3cret',
    S3_SECRET_KEY_FILE: '/nowhere',
  });
  expect((await service.exited).code).toBe(2);
  for (const name of ['GRPC_PORT', 'SLOW_MS', 'OBJECT_STORE_URL', 'S3_SECRET_KEY'])
    expect(service.stderr()).toContain(name);
  expect(service.stderr()).not.toContain('s3cret');
});

test('a ready service answers gRPC health, /metrics and /healthz, and has written its ports', async () => {
  const { service, client, http } = await startReady();
  expect((await http('/healthz')).status).toBe(200);
  await expect(client.getOperation({ name: 'operations/none' })).rejects.toMatchObject({ code: 'not_found' });
  const metrics = await http('/metrics');
  expect(metrics.headers.get('content-type')).toContain('openmetrics');
  const text = await metrics.text();
  expect(text).toContain('rpc_server_call_duration_seconds');
  expect(text).toContain('nodejs_eventloop_lag');
  expect((await http('/other')).status).toBe(404);
  expect((await service.stop()).code).toBe(0);
});

test('SIGTERM finishes open calls, hands work back, closes in reverse order and exits 0', async () => {
  const { service, client, http } = await startReady({ SLOW_MS: '60000', SHUTDOWN_GRACE_MS: '60000' });
  await client.cancelOperation({ name: 'long' });
  const [, name] = await service.waitForLine(/"msg":"started (operations\/[^"]+)"/);
  await service.waitForLine(/begins to shout long/);
  const waiting = client.waitOperation({ name: name!, timeout: { seconds: 3, nanos: 0 } });
  await service.waitForLine(/begins to wait for/);
  service.signal('SIGTERM');
  await service.waitForLine(/taking no more work/);
  expect((await http('/healthz')).status).toBe(503);
  expect((await waiting).done).toBe(false);
  expect((await service.exited).code).toBe(0);
  const messages = service.lines().map((line) => String(record(line)['msg']));
  expect(messages.indexOf('the worker has stopped')).toBeGreaterThan(messages.indexOf('stopping: taking no more work'));
  expect(messages.indexOf('closed the service')).toBeGreaterThan(messages.indexOf('the worker has stopped'));
  expect(messages.at(-1)).toBe('stopped');
  expect(service.stderr()).toBe('');
});

test('a second signal ends the process at once with 1', async () => {
  const { service } = await startReady({ MISBEHAVE: 'hang', SHUTDOWN_GRACE_MS: '60000' });
  service.signal('SIGTERM');
  await service.waitForLine(/taking no more work/);
  service.signal('SIGINT');
  expect((await service.exited).code).toBe(1);
});

test('a stop that hangs is cut off after its grace, and one that fails is not called a success', async () => {
  const hanging = await startReady({ MISBEHAVE: 'hang', SHUTDOWN_GRACE_MS: '500' });
  hanging.service.signal('SIGTERM');
  expect((await hanging.service.exited).code).toBe(1);
  expect(hanging.service.lines().at(-1)).toContain('SHUTDOWN_GRACE_MS');
  const failing = await startReady({ MISBEHAVE: 'reject' });
  expect((await failing.service.stop()).code).toBe(1);
});

test('a service that is done ends by itself with its own code', async () => {
  const service = await start({ MISBEHAVE: 'end' });
  expect((await service.exited).code).toBe(42);
  expect(service.stdout()).toContain('closed the service');
});

test('an error that nobody caught is logged and ends the process', async () => {
  const service = await start({ MISBEHAVE: 'throw-later' });
  expect((await service.exited).code).toBe(1);
  expect(fatalLines(service)).toHaveLength(1);
  expect(record(fatalLines(service)[0]!)).toMatchObject({ msg: 'an error was caught by nobody' });
});

test('NATS that is down at the start is waited for', async () => {
  const port = await freePort();
  const service = await start({ NATS_URL: `nats://127.0.0.1:${port}` });
  await service.waitForLine(new RegExp(`no nats-server answers at 127.0.0.1:${port}; is it running`));
  const late = await startNats({ port });
  await service.waitForLine(/tiny is ready/);
  expect((await service.stop()).code).toBe(0);
  await late.stop();
});

test('a process that still waits for NATS stops when it is asked to', async () => {
  const service = await start({ NATS_URL: 'nats://127.0.0.1:1' });
  await service.waitForLine(/is it running/);
  expect((await service.stop()).code).toBe(0);
});

test('a taken port is said in one line, for gRPC and for metrics', async () => {
  const taken = createServer();
  const port = await new Promise<number>((resolve) => {
    taken.listen(0, '127.0.0.1', () => resolve((taken.address() as { port: number }).port));
  });
  for (const variable of ['GRPC_PORT', 'METRICS_PORT']) {
    const service = await start({ [variable]: String(port) });
    expect((await service.exited).code).toBe(1);
    expect(fatalLines(service)).toHaveLength(1);
    expect(String(record(fatalLines(service)[0]!)['msg'])).toContain(`cannot listen on 127.0.0.1:${port}`);
  }
  taken.close();
});

test('an object store that cannot be used ends the start with its name', async () => {
  const file = join(tempDir('store'), 'file');
  writeFileSync(file, '');
  const service = await start({ OBJECT_STORE_URL: `file://${file}` });
  expect((await service.exited).code).toBe(1);
  expect(String(record(fatalLines(service)[0]!)['msg'])).toContain(`cannot use ${file} as object store`);
  expect(existsSync(file)).toBe(true);
});

test.skipIf(s3Missing() !== null)(
  'an S3 store that is down at the start is waited for, and its secret is never logged',
  async () => {
    const s3 = (await startS3())!;
    const port = await freePort();
    const service = await start({
      OBJECT_STORE_URL: `s3://bucket?endpoint=http://127.0.0.1:${port}`,
      S3_ACCESS_KEY: s3.accessKey,
      S3_SECRET_KEY: s3.secretKey,
    });
    await service.waitForLine(
      /the object store does not answer \(ECONNREFUSED\); could not open the bucket bucket. Trying again in/,
    );
    const server = forward(port, s3.endpoint);
    await service.waitForLine(/tiny is ready/, 60_000);
    expect((await service.stop()).code).toBe(0);
    expect(service.lines().join('\n')).not.toContain(s3.secretKey);
    server.close();
    await s3.stop();
  },
);

test('work of a process that was killed is done by another, in the same trace', async () => {
  const otlp = await startOtlp();
  const first = await startReady({
    OTEL_EXPORTER_OTLP_ENDPOINT: otlp.endpoint,
    OTEL_SERVICE_NAME: 'first',
    SLOW_MS: '60000',
  });
  await first.client.cancelOperation({ name: 'hello' });
  const [line] = await first.service.waitForLine(/.*"msg":"started operations\/.*/);
  const { operation, traceparent } = record(line) as { operation: string; traceparent: string };
  await first.service.waitForLine(/begins to shout hello/);
  await first.service.kill();

  const second = await startReady({ OTEL_EXPORTER_OTLP_ENDPOINT: otlp.endpoint, OTEL_SERVICE_NAME: 'second' });
  const done = await second.client.waitOperation(
    { name: operation, timeout: { seconds: 60, nanos: 0 } },
    { deadlineMs: 70_000 },
  );
  expect(done.done).toBe(true);
  expect(done.result).toMatchObject({ $case: 'response' });
  const [begun] = await second.service.waitForLine(/.*begins to shout hello.*/);
  const traceId = traceparent.split('-')[1];
  await second.client.cancelOperation({ name: 'again' });
  await second.service.waitForLine(/begins to shout again/);
  expect(String(record(begun)['traceparent'])).toContain(traceId);
  expect((await second.service.stop()).code).toBe(0);
  const spans = otlp.spans().filter((span) => span.service === 'second');
  const work = spans.filter((span) => span.name === 'process operation-shout');
  // The producer of the first died before it could send its spans; its trace goes on all the same.
  expect(work.map((span) => span.traceId)).toContain(traceId);
  const sent = spans.find((span) => span.name === 'publish MM_WORK');
  expect(sent?.kind).toBe('producer');
  const received = work.find((span) => span.traceId === sent?.traceId);
  expect(received).toMatchObject({ kind: 'consumer', parentSpanId: sent?.spanId, links: [{ spanId: sent?.spanId }] });
  const call = spans.find((span) => span.spanId === sent?.parentSpanId);
  expect(call?.kind).toBe('server');
  await otlp.stop();
});

/** Lets a port answer as an endpoint does. */
function forward(port: number, endpoint: string): Server {
  const target = new URL(endpoint);
  const server = createServer((near) => {
    const far = connect(Number(target.port), target.hostname);
    near.pipe(far).pipe(near);
    near.on('error', () => far.destroy());
    far.on('error', () => near.destroy());
  });
  return server.listen(port, '127.0.0.1');
}
