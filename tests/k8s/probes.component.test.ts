import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  freePorts,
  type NatsServer,
  type RunningProcess,
  repositoryRoot,
  spawnProcess,
  startNats,
  tempDir,
  waitFor,
} from '@medmesh/testkit';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { build, containerOf, environmentOf, k8s, type ServiceName, services, workload } from './manifests.ts';

const objects = build(join(k8s, 'overlays/single-node'));
const folder = tempDir('probes');
const processes = new Map<ServiceName, RunningProcess>();
const ended = new Map<ServiceName, RunningProcess>();
const portsOf = new Map<ServiceName, { grpc: number; metrics: number; http: number }>();
let nats: NatsServer;

/** The process of a pod with the pod's variables; other are only the ports and where things are. */
async function startAsInPod(service: ServiceName): Promise<void> {
  const [grpc = 0, metrics = 0, http = 0] = await freePorts(3);
  portsOf.set(service, { grpc, metrics, http });
  const keys = join(folder, 'keys.json');
  writeFileSync(keys, JSON.stringify({ keys: [{ tenant: 'ward-3', sha256: '0'.repeat(64), access: 'all' }] }));
  const here = {
    LISTEN_HOST: '127.0.0.1',
    GRPC_PORT: `${grpc}`,
    METRICS_PORT: `${metrics}`,
    NATS_URL: nats.url,
    OBJECT_STORE_URL: `file://${join(folder, 'objects')}`,
    CACHE_DIR: join(folder, service, 'cache'),
    STAGING_DIR: join(folder, 'staging'),
    ...(service === 'gateway' ? { HTTP_PORT: `${http}`, API_KEYS_FILE: keys } : {}),
  };
  const env = {
    ...Object.fromEntries(environmentOf(objects, service)),
    S3_ACCESS_KEY: undefined,
    S3_SECRET_KEY: undefined,
    ...here,
  };
  const args = [
    '--import',
    './libs/telemetry/src/register.ts',
    ...(containerOf(workload(objects, service)).args ?? []),
  ];
  const running = await spawnProcess({ command: process.execPath, args, cwd: repositoryRoot, env });
  processes.set(service, running);
  void running.exited.then(() => ended.set(service, running));
}

async function probe(service: ServiceName, name: string): Promise<number | null> {
  const program = join(repositoryRoot, 'libs/rpc/src/health-probe.ts');
  const args = [program, name, `${portsOf.get(service)?.grpc}`];
  return (await (await spawnProcess({ command: process.execPath, args })).exited).code;
}

beforeAll(async () => {
  nats = await startNats();
  await Promise.all(services.map(startAsInPod));
});
afterAll(async () => {
  await Promise.all([...processes.values()].map((running) => running.kill()));
  await nats.stop();
});

test('every service, started as in its pod, answers each probe of its pod and shows its metrics', async () => {
  for (const service of services) {
    const { metrics = 0 } = portsOf.get(service) ?? {};
    await waitFor(async () => ended.has(service) || (await fetch(`http://127.0.0.1:${metrics}/healthz`)).ok, {
      what: `${service} to be ready`,
      timeoutMs: 60_000,
    });
    expect(ended.get(service)?.lines().slice(-3) ?? [], `${service} has ended`).toEqual([]);
    expect(await (await fetch(`http://127.0.0.1:${metrics}/metrics`)).text()).toContain('nodejs_');
  }
  const { startupProbe, livenessProbe, readinessProbe } = containerOf(workload(objects, 'trainer'));
  const names = [startupProbe, livenessProbe, readinessProbe].map((asked) => asked?.grpc?.service ?? '');
  for (const name of new Set(names))
    expect(await Promise.all(services.map((service) => probe(service, name))), name).toEqual(services.map(() => 0));
  const { http = 0 } = portsOf.get('gateway') ?? {};
  expect((await fetch(`http://127.0.0.1:${http}/v1/models`)).status).toBe(401);
  expect(await probe('trainer', 'nobody')).toBe(1);
});

test('a service that is asked to stop ends in order, within its grace', async () => {
  const running = processes.get('lifecycle');
  expect(await running?.stop()).toMatchObject({ code: 0 });
  expect(await probe('lifecycle', 'live')).toBe(1);
});
