import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { loadConfig } from '@medmesh/config';
import { findProgram, repositoryRoot } from '@medmesh/testkit';
import { expect, test } from 'vitest';
import { parse } from 'yaml';
import { build, containerOf, k8s, readText, services, workload } from './manifests.ts';
import { schemas, variablesOf } from './service-variables.ts';

type ComposeService = {
  image: string;
  command?: string[];
  environment?: Record<string, string | null>;
  volumes?: string[];
  read_only?: boolean;
  cap_drop?: string[];
  ports?: string[];
  stop_grace_period?: string;
};
type ComposeFile = { services: Record<string, ComposeService>; volumes: Record<string, null> };

const compose = parse(readText('deploy/compose.yaml'), { merge: true }) as ComposeFile;
const gpu = parse(readText('deploy/compose.gpu.yaml'), { merge: true }) as ComposeFile;
const containerfile = readText('deploy/Containerfile');
const { version } = JSON.parse(readText('package.json')) as { version: string };

const serviceOf = (name: string): ComposeService => {
  const found = compose.services[name];
  if (found === undefined) throw new Error(`compose.yaml has no ${name}`);
  return found;
};
/** `${NAME:-value}` as it is without NAME. */
const byDefault = (text: string) => text.replaceAll(/\$\{\w+:-([^}]*)\}/g, '$1');

test.each(services)('compose gives %s variables that it reads, with values that it takes, and time to stop', (name) => {
  const { environment = {}, command, stop_grace_period: grace } = serviceOf(name);
  expect(command).toEqual([`services/${name}/src/main.ts`]);
  const known = variablesOf(name);
  expect(Object.keys(environment).filter((variable) => !known.has(variable))).toEqual([]);
  expect(Object.keys(gpu.services[name]?.environment ?? {}).filter((variable) => !known.has(variable))).toEqual([]);
  const set = Object.entries(environment).flatMap(([key, value]) => (value === null ? [] : [[key, byDefault(value)]]));
  const config = loadConfig(schemas[name], Object.fromEntries(set) as Record<string, string>);
  expect(Number.parseInt(grace ?? '', 10)).toBeGreaterThan(Number(config['SHUTDOWN_GRACE_MS']) / 1000);
});

test('compose runs every service without rights, keeps volumes that it declares, and opens the gateway alone on loopback', () => {
  for (const name of services) expect(serviceOf(name)).toMatchObject({ read_only: true, cap_drop: ['ALL'] });
  for (const [name, { ports, volumes = [] }] of Object.entries(compose.services)) {
    expect(ports === undefined, name).toBe(name !== 'gateway');
    for (const port of ports ?? []) expect(byDefault(port)).toMatch(/^127\.0\.0\.1:/);
    const named = volumes
      .map((volume) => byDefault(volume).split(':')[0] ?? '')
      .filter((source) => !/^[./]/.test(source));
    expect(Object.keys(compose.volumes)).toEqual(expect.arrayContaining(named));
  }
});

test('compose, manifests, package and image agree on versions, ports and user', () => {
  const objects = build(join(k8s, 'overlays/single-node'));
  for (const name of ['nats', 'seaweedfs'])
    expect(byDefault(serviceOf(name).image)).toBe(containerOf(workload(objects, name)).image);
  for (const name of services) expect(byDefault(serviceOf(name).image)).toBe(`medmesh:${version}`);
  const pnpm = /^pnpm_version=(.+)$/m.exec(readText('scripts/setup.sh'))?.[1];
  expect(containerfile).toContain(`pnpm@${pnpm} `);
  expect(containerfile).toContain('USER 65532:65532');
  const ports = Object.fromEntries(
    containerOf(workload(objects, 'trainer')).ports.map((each) => [each.name, each.containerPort]),
  );
  expect(containerfile).toContain(`EXPOSE ${ports['grpc']} ${ports['metrics']}`);
});

test('nats-server takes the configuration of compose, which syncs every write', () => {
  expect(readText('deploy/nats.conf')).toMatch(/^ {2}sync_interval: always$/m);
  const file = join(repositoryRoot, 'deploy/nats.conf');
  execFileSync(findProgram('nats-server') ?? 'nats-server', ['--config', file, '-t'], { stdio: 'pipe' });
});
