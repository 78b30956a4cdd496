import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { loadConfig } from '@medmesh/config';
import { findProgram } from '@medmesh/testkit';
import { describe, expect, test } from 'vitest';
import {
  allowedFlows,
  build,
  buildWith,
  type Container,
  containerOf,
  environmentOf,
  k8s,
  ofKind,
  overlays,
  readText,
  selects,
  services,
  workload,
  workloads,
} from './manifests.ts';
import { schemas, variablesOf } from './service-variables.ts';

const built = new Map(overlays.map((name) => [name, build(join(k8s, 'overlays', name))]));
const { version } = JSON.parse(readText('package.json')) as { version: string };
/** What README.md tells the reader to make. */
const secrets = ['medmesh-api-keys', 'medmesh-nats', 'medmesh-s3'];
const seconds = (milliseconds: string | undefined) => Number(milliseconds) / 1000;

describe.each(overlays)('the overlay %s', (overlay) => {
  const objects = built.get(overlay) ?? [];

  test('holds each object once, in one namespace, and every service', () => {
    const names = objects.map(({ kind, metadata }) => `${kind}/${metadata.name}`);
    expect(names).toEqual([...new Set(names)]);
    for (const { kind, metadata } of objects) if (kind !== 'Namespace') expect(metadata.namespace).toBe('medmesh');
    const deployments = ofKind(objects, 'Deployment').map(({ metadata }) => metadata.name);
    expect(deployments.toSorted()).toEqual([...services].toSorted());
  });

  test('keeps every pod to the restricted standard, without a token of the cluster', () => {
    const [namespace] = ofKind(objects, 'Namespace');
    expect(namespace?.metadata.labels).toMatchObject({ 'pod-security.kubernetes.io/enforce': 'restricted' });
    for (const { spec } of workloads(objects)) {
      const pod = spec.template.spec;
      expect(pod).toMatchObject({
        automountServiceAccountToken: false,
        securityContext: { runAsNonRoot: true, runAsUser: 65532, seccompProfile: { type: 'RuntimeDefault' } },
      });
      expect([pod.hostNetwork, pod.hostPID, pod.hostIPC]).toEqual([undefined, undefined, undefined]);
      for (const volume of pod.volumes ?? [])
        expect(Object.keys(volume).filter((key) => !['name', 'emptyDir', 'configMap', 'secret'].includes(key))).toEqual(
          [],
        );
      for (const container of [...pod.containers, ...(pod.initContainers ?? [])])
        expect(container.securityContext).toEqual({
          allowPrivilegeEscalation: false,
          readOnlyRootFilesystem: true,
          capabilities: { drop: ['ALL'] },
        });
    }
  });

  test('bounds the memory of every container and the size of every scratch volume', () => {
    for (const object of workloads(objects)) {
      const { resources } = containerOf(object);
      expect(resources.limits['memory'], object.metadata.name).toBeDefined();
      expect(resources.requests).toMatchObject({ cpu: expect.anything(), memory: expect.anything() });
      for (const { emptyDir } of object.spec.template.spec.volumes ?? [])
        if (emptyDir !== undefined) expect(emptyDir.sizeLimit).toMatch(/^\d+Gi$/);
    }
  });

  test('selects pods that there are, by ports that they have', () => {
    const pods = workloads(objects);
    for (const { metadata, spec } of pods)
      expect(selects(spec.selector, spec.template.metadata.labels), metadata.name).toBe(true);
    for (const { metadata, spec } of ofKind(objects, 'Service')) {
      const chosen = pods.filter((pod) => selects({ matchLabels: spec.selector }, pod.spec.template.metadata.labels));
      expect(chosen.map((pod) => pod.metadata.name)).toEqual([metadata.name]);
      const ports = chosen.flatMap((pod) => containerOf(pod).ports.map(({ name }) => name));
      for (const { targetPort } of spec.ports ?? []) expect(ports).toContain(targetPort);
    }
    for (const { metadata, spec } of ofKind(objects, 'PodDisruptionBudget'))
      expect(pods.filter((pod) => selects(spec.selector, pod.spec.template.metadata.labels))).toHaveLength(
        pods.filter((pod) => pod.metadata.name === metadata.name).length,
      );
    for (const { spec } of ofKind(objects, 'StatefulSet'))
      expect(ofKind(objects, 'Service').map(({ metadata }) => metadata.name)).toContain(spec.serviceName);
  });

  test('refers to ConfigMaps that are there and to Secrets that the README names', () => {
    const maps = ofKind(objects, 'ConfigMap').map(({ metadata }) => metadata.name);
    for (const { spec } of workloads(objects)) {
      const pod = spec.template.spec;
      const volumes = [
        ...(pod.volumes ?? []).map(({ name }) => name),
        ...(spec.volumeClaimTemplates ?? []).map(({ metadata }) => metadata.name),
      ];
      for (const { envFrom = [], env = [], volumeMounts } of pod.containers) {
        for (const { configMapRef } of envFrom) expect(maps).toContain(configMapRef.name);
        for (const { valueFrom } of env)
          if (valueFrom?.secretKeyRef) expect(secrets).toContain(valueFrom.secretKeyRef.name);
        expect(volumeMounts.map(({ name }) => name).toSorted()).toEqual(volumes.toSorted());
      }
      for (const { configMap, secret } of pod.volumes ?? []) {
        if (configMap !== undefined) expect(maps).toContain(configMap.name);
        if (secret !== undefined) expect(secrets).toContain(secret.secretName);
      }
    }
    expect(ofKind(objects, 'Secret')).toEqual([]);
    for (const name of secrets) expect(readText('k8s/README.md')).toContain(`create secret generic ${name} `);
  });

  test('names images by version: ours to be replaced, the others exactly', () => {
    for (const object of workloads(objects)) {
      const { image } = containerOf(object);
      const ours = `registry.invalid/medmesh:${version}${overlay === 'gpu' ? '-cuda' : ''}`;
      if (object.kind === 'Deployment') expect(image).toBe(ours);
      else expect(image).toMatch(/^[a-z/]+:\d+\.\d+(\.\d+)?(-alpine)?$/);
    }
  });

  test.each(services)('gives %s variables that it reads, with values that it takes', (service) => {
    const environment = environmentOf(objects, service);
    const known = variablesOf(service);
    expect([...environment.keys()].filter((name) => !known.has(name))).toEqual([]);
    const withSecrets = [...environment].map(([name, value]) => [name, value ?? 'a-secret']);
    const config = loadConfig(schemas[service], Object.fromEntries(withSecrets) as Record<string, string>);
    expect(config).toMatchObject({ LISTEN_HOST: '0.0.0.0' });
  });

  test.each(services)('starts %s and asks for its health where it listens, and gives it time to stop', (service) => {
    const object = workload(objects, service);
    const container = containerOf(object);
    const environment = environmentOf(objects, service);
    const port = (variable: string) => Number(environment.get(variable));
    expect(container.args).toEqual([`services/${service}/src/main.ts`]);
    expect(Object.fromEntries(container.ports.map(({ name, containerPort }) => [name, containerPort]))).toEqual({
      grpc: port('GRPC_PORT'),
      metrics: port('METRICS_PORT'),
      ...(service === 'gateway' ? { http: port('HTTP_PORT') } : {}),
    });
    const asks = (probe: 'startupProbe' | 'livenessProbe' | 'readinessProbe') => container[probe]?.grpc;
    expect(asks('startupProbe')).toEqual({ port: port('GRPC_PORT'), service: 'live' });
    expect(asks('livenessProbe')).toEqual({ port: port('GRPC_PORT'), service: 'live' });
    expect(asks('readinessProbe')).toEqual({ port: port('GRPC_PORT'), service: 'ready' });
    const before = container.lifecycle?.preStop?.sleep?.seconds ?? 0;
    const drain = seconds(environment.get('SHUTDOWN_GRACE_MS'));
    expect(object.spec.template.spec.terminationGracePeriodSeconds).toBeGreaterThan(before + drain);
  });

  test('spreads calls: every address is a service without one of its own, with a port for gRPC', () => {
    const addresses = services.flatMap((service) =>
      [...environmentOf(objects, service)].filter(([name]) => /_ADDRS?$/.test(name)).map(([, value]) => value ?? ''),
    );
    expect(addresses).toHaveLength(6);
    for (const address of addresses) {
      const [host, port] = address.split(':');
      const target = ofKind(objects, 'Service').find(({ metadata }) => metadata.name === host);
      expect(target?.spec.clusterIP).toBe('None');
      expect(target?.spec.ports).toContainEqual(expect.objectContaining({ name: 'grpc', port: Number(port) }));
    }
  });

  test('lets through the flows that ARCHITECTURE.md draws, and no other', () => {
    const behind = services.filter((service) => service !== 'gateway');
    const expected = [
      ...behind.map((service) => `gateway → ${service}:7400`),
      'lifecycle → inference:7400',
      ...behind.map((service) => `${service} → nats:4222`),
      ...(overlay === 'ha' ? ['nats → nats:6222'] : behind.map((service) => `${service} → seaweedfs:8333`)),
    ];
    expect(allowedFlows(objects)).toEqual(expected.toSorted());
  });

  test('runs nats-server by a configuration that it takes, with every write synced', () => {
    const config = ofKind(objects, 'ConfigMap').find(({ metadata }) => metadata.name.startsWith('nats-'))?.data?.[
      'nats.conf'
    ];
    expect(config).toMatch(/^ {2}sync_interval: always$/m);
    const cluster = /nats-route:/.test(config ?? '');
    expect(cluster).toBe(overlay === 'ha');
    expect(workload(objects, 'nats').spec.replicas).toBe(cluster ? 3 : 1);
    for (const service of services)
      expect(environmentOf(objects, service).get('NATS_REPLICAS')).toBe(cluster ? '3' : '1');
    const program = findProgram('nats-server') ?? 'nats-server';
    const file = join(k8s, `components/nats${cluster ? '-cluster' : ''}/nats.conf`);
    const env = { ...process.env, SERVER_NAME: 'nats-0', PASSWORD: 'a-password' };
    expect(config).toBe(readText('k8s/components', `nats${cluster ? '-cluster' : ''}`, 'nats.conf'));
    execFileSync(program, ['--config', file, '-t'], { env, stdio: 'pipe' });
  });
});

test('with GPUs, trainer and inference have one each and name it; nobody else has', () => {
  const gpu = (container: Container) => container.resources.limits['nvidia.com/gpu'];
  const objects = built.get('gpu') ?? [];
  for (const service of services) {
    const uses = ['trainer', 'inference'].includes(service);
    expect(gpu(containerOf(workload(objects, service))), service).toBe(uses ? '1' : undefined);
    expect(environmentOf(objects, service).get('ENGINE_DEVICE')).toBe(uses ? 'cuda' : undefined);
    expect(environmentOf(objects, service).has('ENGINE_MEMORY_BUDGET')).toBe(uses);
  }
});

test('in the overlay ha every service runs twice, and no disruption takes both', () => {
  const objects = built.get('ha') ?? [];
  for (const service of services) expect(workload(objects, service).spec.replicas).toBe(2);
  const budgets = ofKind(objects, 'PodDisruptionBudget').map(({ metadata }) => metadata.name);
  expect(budgets).toEqual(expect.arrayContaining([...services, 'nats']));
});

test('behind TLS the gateway is asked for its health in clear, at its metrics port, and reads the mounted files', () => {
  const objects = buildWith('gateway-tls', 'metrics', 'hub-egress');
  const container = containerOf(workload(objects, 'gateway'));
  for (const probe of ['startupProbe', 'livenessProbe', 'readinessProbe'] as const) {
    expect(container[probe]?.grpc).toBeUndefined();
    expect(container[probe]?.httpGet).toEqual({ path: '/healthz', port: 'metrics' });
  }
  const environment = environmentOf(objects, 'gateway');
  for (const name of ['TLS_CERT_FILE', 'TLS_PRIVATE_FILE']) {
    expect(variablesOf('gateway')).toContain(name);
    const folder = container.volumeMounts.find(({ mountPath }) => environment.get(name)?.startsWith(`${mountPath}/`));
    expect(folder?.name).toBe('tls');
  }
});

test('the ServiceMonitor finds the metrics port of every service', () => {
  const objects = buildWith('metrics');
  const [monitor] = ofKind(objects, 'ServiceMonitor');
  const found = ofKind(objects, 'Service')
    .filter(({ metadata }) => selects(monitor?.spec.selector ?? {}, metadata.labels ?? {}))
    .filter(({ spec }) => spec.ports?.some(({ name }) => name === 'metrics'));
  expect(found.map(({ metadata }) => metadata.name).toSorted()).toEqual([...services].toSorted());
});
