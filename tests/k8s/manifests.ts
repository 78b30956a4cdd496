import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { findProgram, repositoryRoot, tempDir } from '@medmesh/testkit';
import { parseAllDocuments } from 'yaml';

export const k8s = join(repositoryRoot, 'k8s');
export const overlays = ['single-node', 'ha', 'gpu'] as const;
export const services = ['gateway', 'lifecycle', 'formatter', 'quantizer', 'trainer', 'inference'] as const;
export type ServiceName = (typeof services)[number];

// The parts of Kubernetes' objects that are looked at here.
export type Labels = Record<string, string>;
type Expression = { key: string; operator: string; values?: string[] };
export type Selector = { matchLabels?: Labels; matchExpressions?: Expression[] };
export type EnvVar = { name: string; value?: string; valueFrom?: { secretKeyRef?: { name: string; key: string } } };
type Action = { port?: number | string; service?: string; path?: string; command?: string[] };
type Probe = { grpc?: Action; httpGet?: Action; tcpSocket?: Action };
export type Container = {
  name: string;
  image: string;
  args?: string[];
  env?: EnvVar[];
  envFrom?: { configMapRef: { name: string } }[];
  ports: { name: string; containerPort: number }[];
  startupProbe?: Probe;
  livenessProbe?: Probe;
  readinessProbe?: Probe;
  lifecycle?: { preStop?: { sleep?: { seconds: number } } };
  resources: { requests: Labels; limits: Labels };
  securityContext: Record<string, unknown>;
  volumeMounts: { name: string; mountPath: string }[];
};
type Volume = {
  name: string;
  emptyDir?: { sizeLimit?: string };
  configMap?: { name: string };
  secret?: { secretName: string };
};
export type PodSpec = {
  containers: Container[];
  initContainers?: Container[];
  volumes?: Volume[];
  terminationGracePeriodSeconds: number;
  automountServiceAccountToken?: boolean;
  hostNetwork?: boolean;
  hostPID?: boolean;
  hostIPC?: boolean;
  securityContext: Record<string, unknown>;
};
type Peer = { podSelector?: Selector; namespaceSelector?: Selector; ipBlock?: { cidr: string } };
export type PolicyRule = { from?: Peer[]; to?: Peer[]; ports?: { port: number | string }[] };
export type KubeObject = {
  kind: string;
  metadata: { name: string; namespace?: string; labels?: Labels };
  data?: Labels;
  spec: {
    selector: Selector & Labels;
    replicas?: number;
    template: { metadata: { labels: Labels }; spec: PodSpec };
    volumeClaimTemplates?: { metadata: { name: string } }[];
    ports?: { name: string; port: number; targetPort: string }[];
    clusterIP?: string;
    serviceName?: string;
    podSelector: Selector;
    policyTypes: string[];
    ingress?: PolicyRule[];
    egress?: PolicyRule[];
  };
};

/** What people apply: kubectl's own kustomize builds the folder. */
export function build(folder: string): KubeObject[] {
  const kubectl = findProgram('kubectl');
  if (kubectl === null)
    throw new Error('kubectl is neither in .cache/bin nor on the PATH: run sh scripts/setup.sh --test');
  const text = execFileSync(kubectl, ['kustomize', folder], { encoding: 'utf8' });
  return parseAllDocuments(text).map((document) => document.toJS() as KubeObject);
}

/** single-node with more components. */
export function buildWith(...components: string[]): KubeObject[] {
  const folder = join(tempDir('k8s'), 'overlay');
  mkdirSync(folder);
  const list = components.map((name) => `  - ${relative(folder, join(k8s, 'components', name))}\n`).join('');
  const base = relative(folder, join(k8s, 'overlays/single-node'));
  writeFileSync(
    join(folder, 'kustomization.yaml'),
    `namespace: medmesh\nresources:\n  - ${base}\ncomponents:\n${list}`,
  );
  return build(folder);
}

export const ofKind = (objects: readonly KubeObject[], ...kinds: string[]): KubeObject[] =>
  objects.filter(({ kind }) => kinds.includes(kind));

export const workloads = (objects: readonly KubeObject[]): KubeObject[] => ofKind(objects, 'Deployment', 'StatefulSet');

/** The only container of a workload. */
export function containerOf(workload: KubeObject): Container {
  const [container, ...more] = workload.spec.template.spec.containers;
  if (container === undefined || more.length > 0) throw new Error(`${workload.metadata.name} has not one container`);
  return container;
}

export function workload(objects: readonly KubeObject[], name: string): KubeObject {
  const found = workloads(objects).find(({ metadata }) => metadata.name === name);
  if (found === undefined) throw new Error(`there is no workload ${name}`);
  return found;
}

/** The environment of a service's process; what comes from a Secret is undefined. */
export function environmentOf(objects: readonly KubeObject[], name: ServiceName): Map<string, string | undefined> {
  const { env = [], envFrom = [] } = containerOf(workload(objects, name));
  const maps = envFrom.map(({ configMapRef }) =>
    ofKind(objects, 'ConfigMap').find(({ metadata }) => metadata.name === configMapRef.name),
  );
  return new Map([
    ...maps.flatMap((map) => Object.entries(map?.data ?? {})),
    ...env.map(({ name: variable, value }) => [variable, value] as const),
  ]);
}

export function selects(selector: Selector, labels: Labels): boolean {
  const { matchLabels = {}, matchExpressions = [] } = selector;
  return (
    Object.entries(matchLabels).every(([key, value]) => labels[key] === value) &&
    matchExpressions.every(({ key, operator, values = [] }) => {
      if (operator !== 'In') throw new Error(`the operator ${operator} is not known here`);
      return values.includes(labels[key] ?? '');
    })
  );
}

/** Every flow between pods of the mesh that the policies let through, as `from → to:port`. */
export function allowedFlows(objects: readonly KubeObject[]): string[] {
  const policies = ofKind(objects, 'NetworkPolicy');
  const pods = workloads(objects);
  const labelsOf = (pod: KubeObject) => pod.spec.template.metadata.labels;
  const lets = (pod: KubeObject, peer: KubeObject, port: number, way: 'ingress' | 'egress') => {
    const about = policies.filter(
      ({ spec }) =>
        spec.policyTypes.includes(way === 'ingress' ? 'Ingress' : 'Egress') && selects(spec.podSelector, labelsOf(pod)),
    );
    const rules = about.flatMap(({ spec }) => spec[way] ?? []);
    return (
      about.length === 0 ||
      rules.some(({ from, to, ports }) => {
        const peers = way === 'ingress' ? from : to;
        const named = peers === undefined || peers.some((each) => isPodOfMesh(each, labelsOf(peer)));
        return named && (ports === undefined || ports.some((each) => each.port === port));
      })
    );
  };
  return pods
    .flatMap((from) =>
      pods.flatMap((to) =>
        containerOf(to)
          .ports.map(({ containerPort }) => containerPort)
          .filter((port) => lets(from, to, port, 'egress') && lets(to, from, port, 'ingress'))
          .map((port) => `${from.metadata.name} → ${to.metadata.name}:${port}`),
      ),
    )
    .toSorted();
}

// Other namespaces are told apart by labels that the mesh's own does not have.
const isPodOfMesh = (peer: Peer, labels: Labels): boolean =>
  peer.namespaceSelector === undefined && peer.podSelector !== undefined && selects(peer.podSelector, labels);

export const readText = (...path: string[]): string => readFileSync(join(repositoryRoot, ...path), 'utf8');
