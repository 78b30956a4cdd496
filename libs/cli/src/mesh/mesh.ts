import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import { isAlive, lastWords, signalProcess, startChild } from './child.ts';
import { natsProgram } from './nats-program.ts';
import { meshPaths, repositoryRoot } from './paths.ts';
import { identityOf, isSame, type ProcessIdentity } from './process-identity.ts';
import { type Supervised, supervise } from './supervised.ts';

/** The processes of a mesh, in the order in which they start. */
const backends = ['lifecycle', 'formatter', 'quantizer', 'trainer', 'inference'] as const;
type Backend = (typeof backends)[number];

export type MeshOptions = {
  stateDir: string;
  /** Port of the gateway; 0 takes a free one. */
  gatewayPort: number;
  /** Port of its HTTP API; 0, the default, takes a free one. */
  httpPort?: number;
  /** OTLP/HTTP collector for traces. */
  otlpEndpoint?: string | undefined;
  /** Folders that imports and exports may touch. */
  uriRoots: string[];
  /** More environment for a process, by its name. */
  env?: Partial<Record<Backend | 'gateway', Record<string, string>>>;
  logLevel?: string;
  /** What the processes take over from whoever starts them: PATH, HOME, and how hubs are reached. */
  inherited: Record<string, string>;
  onProgress?: (name: string) => void;
};

/** What is written down about a running mesh. */
export type MeshRecord = {
  gateway: string;
  /** The OpenAI-compatible API. */
  http: string;
  metrics: Record<string, string>;
  nats: string;
  processes: { name: string; pid: number; log: string }[];
  /** Who keeps the processes alive, and would start again what somebody else stops. */
  supervisor: ProcessIdentity;
  stateDir: string;
  startTime: string;
};

export type Mesh = {
  /** Its processes change when one of them is started again. */
  readonly record: MeshRecord;
  /** Resolves when a process ended by itself so often that it is not started again. */
  failed: Promise<{ name: string; words: string }>;
  /** Stops the processes in reverse order and waits for them. */
  stop(): Promise<void>;
};

const readyTimeoutMs = 60_000;
const stopTimeoutMs = 30_000;

/** A port that nothing listens on now. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === 'object' && address !== null ? address.port : 0;
}

async function checkPort(port: number): Promise<void> {
  if (port === 0) return;
  const server = createServer();
  const fault = await new Promise<NodeJS.ErrnoException | undefined>((resolve) => {
    server.once('error', resolve);
    server.listen(port, '127.0.0.1', () => resolve(undefined));
  });
  await new Promise((resolve) => server.close(resolve));
  if (fault?.code === 'EADDRINUSE') {
    throw new Failure(
      'failed_precondition',
      `port ${port} is taken; stop what listens there or choose another by --port`,
      { reason: 'PORT_TAKEN' },
    );
  }
}

async function readRecord(stateDir: string): Promise<MeshRecord | undefined> {
  try {
    return JSON.parse(await readFile(meshPaths(stateDir).record, 'utf8')) as MeshRecord;
  } catch {
    return undefined;
  }
}

/** The record of a mesh that runs in this folder and can be called, or undefined. */
export async function readMesh(stateDir: string): Promise<MeshRecord | undefined> {
  const record = await readRecord(stateDir);
  return record !== undefined && record.gateway !== '' && record.processes.some(({ pid }) => isAlive(pid))
    ? record
    : undefined;
}

/** Whether somebody is about to start a mesh in this folder, or to stop it. */
export async function isSupervised(stateDir: string): Promise<boolean> {
  const record = await readRecord(stateDir);
  return record !== undefined && (await isSame(record.supervisor));
}

/** SIGTERM, and SIGKILL to what is still there after that. */
async function endProcess(identity: ProcessIdentity, timeoutMs: number): Promise<void> {
  signalProcess(identity.pid, 'SIGTERM');
  const deadline = Date.now() + timeoutMs;
  while ((await isSame(identity)) && Date.now() < deadline) await sleep(20);
  if (await isSame(identity)) signalProcess(identity.pid, 'SIGKILL');
}

/**
 * Stops the mesh of a folder, also one that is still starting. Whoever keeps it alive is asked first and stops its processes in order; what is left
 * after that is stopped by its id, the gateway first, nats-server last. Returns how many processes there were.
 */
export async function stopMesh(stateDir: string): Promise<number> {
  const record = await readRecord(stateDir);
  if (record === undefined) return 0;
  const supervised = await isSame(record.supervisor);
  const count = record.processes.filter(({ pid }) => isAlive(pid)).length;
  if (supervised) await endProcess(record.supervisor, stopTimeoutMs * (backends.length + 2));
  // Written anew while it was asked: a process that had just been started again is in it.
  const { processes } = (await readRecord(stateDir)) ?? { processes: supervised ? [] : record.processes };
  for (const { pid } of processes.toReversed()) await endProcess(await identityOf(pid), stopTimeoutMs);
  await rm(meshPaths(stateDir).record, { force: true });
  return Math.max(count, supervised ? 1 : 0);
}

type Ready = { grpc: number; metrics: number; http?: number };

/** Waits for the file a service writes when it can be called; if it has given up, says why. */
async function waitReady(service: Supervised, portFile: string, signal: AbortSignal): Promise<Ready> {
  let given: string | undefined;
  void service.failed.then(({ words }) => {
    given = words;
  });
  const deadline = Date.now() + readyTimeoutMs;
  for (;;) {
    signal.throwIfAborted();
    const ready = await readFile(portFile, 'utf8').then(
      (text) => JSON.parse(text) as Ready & { pid?: number },
      () => undefined,
    );
    if (ready !== undefined && ready.pid === service.pid) return ready;
    if (given !== undefined || Date.now() > deadline) {
      const how = given === undefined ? `is not ready after ${readyTimeoutMs / 1000} s` : 'cannot start';
      throw new Failure(
        'unavailable',
        `${service.name} ${how}: ${given ?? lastWords(service.logPath)} (${service.logPath})`,
        {
          reason: 'SERVICE_FAILED',
        },
      );
    }
    await sleep(25);
  }
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/** Starts the broker. Its default loses acknowledged messages at a power cut: every write is synced. */
async function startNats(o: MeshOptions, onRestart: () => void): Promise<{ process: Supervised; port: number }> {
  const paths = meshPaths(o.stateDir);
  const program = natsProgram(join(repositoryRoot, '.cache/bin'), o.inherited['PATH']);
  const port = await freePort();
  const config = join(paths.run, 'nats.conf');
  const jetstream = `jetstream { store_dir: ${JSON.stringify(paths.nats)}, sync_interval: always }`;
  await writeFile(config, `listen: "127.0.0.1:${port}"\n${jetstream}\n`);
  const start = () =>
    startChild({
      name: 'nats-server',
      command: program,
      args: ['-c', config],
      env: o.inherited,
      logPath: join(paths.logs, 'nats-server.log'),
      cwd: o.stateDir,
    });
  return { process: supervise(start, onRestart), port };
}

async function waitListens(
  { process, port }: { process: Supervised; port: number },
  signal: AbortSignal,
): Promise<void> {
  const deadline = Date.now() + readyTimeoutMs;
  while (!(await listens(port))) {
    signal.throwIfAborted();
    if (Date.now() > deadline) {
      throw new Failure(
        'unavailable',
        `nats-server does not answer: ${lastWords(process.logPath)} (${process.logPath})`,
        {
          reason: 'SERVICE_FAILED',
        },
      );
    }
    await sleep(25);
  }
}

/**
 * Starts nats-server and the six services as processes of their own on loopback, with a file:// store, and keeps them alive. If one cannot start, all
 * are stopped again and the reason is thrown.
 */
export async function startMesh(o: MeshOptions, signal: AbortSignal): Promise<Mesh> {
  const paths = meshPaths(o.stateDir);
  if ((await isSupervised(o.stateDir)) || (await readMesh(o.stateDir)) !== undefined) {
    throw new Failure('failed_precondition', `a mesh already runs in ${o.stateDir}; stop it by ./medmesh down`, {
      reason: 'MESH_RUNNING',
    });
  }
  await checkPort(o.gatewayPort);
  await checkPort(o.httpPort ?? 0);
  await rm(paths.run, { recursive: true, force: true });
  for (const dir of [paths.nats, paths.objects, paths.cache, paths.staging, paths.logs, paths.run])
    await mkdir(dir, { recursive: true });

  const shared: Record<string, string> = {
    ...o.inherited,
    NODE_COMPILE_CACHE: join(repositoryRoot, '.cache/compile'),
    OBJECT_STORE_URL: `file://${paths.objects}`,
    CACHE_DIR: paths.cache,
    STAGING_DIR: paths.staging,
    URI_ROOTS: o.uriRoots.join(','),
    LOG_LEVEL: o.logLevel ?? 'info',
    ...(o.otlpEndpoint === undefined ? {} : { OTEL_EXPORTER_OTLP_ENDPOINT: o.otlpEndpoint }),
  };
  const processes: Supervised[] = [];
  const record: MeshRecord = {
    gateway: '',
    http: '',
    metrics: {},
    nats: '',
    processes: [],
    supervisor: await identityOf(process.pid),
    stateDir: o.stateDir,
    startTime: new Date().toISOString(),
  };
  const writeRecord = async () => {
    record.processes = processes.map(({ name, pid, logPath }) => ({ name, pid, log: logPath }));
    await writeFile(`${paths.record}.partial`, `${JSON.stringify(record, null, 2)}\n`);
    await rename(`${paths.record}.partial`, paths.record);
  };
  let up = false;
  const onRestart = () => {
    if (up) void writeRecord();
  };
  // From here on whoever wants it stopped knows whom to ask.
  await writeRecord();
  // Whoever cannot wait for an orderly stop (a second Ctrl-C) still leaves nothing running.
  const killAll = () => {
    for (const { pid } of processes) signalProcess(pid, 'SIGKILL');
  };
  process.once('exit', killAll);
  const stop = async () => {
    up = false;
    for (const supervised of processes.toReversed()) await supervised.stop();
    process.off('exit', killAll);
    await rm(paths.record, { force: true });
  };

  // Nothing waits between the decision to start a process and its place in the list: whatever was started is stopped.
  const startService = async (name: Backend | 'gateway', port: number, env: Record<string, string>): Promise<Ready> => {
    const portFile = join(paths.run, `${name}.json`);
    const service = supervise(
      () =>
        startChild({
          name,
          command: process.execPath,
          args: [
            '--import',
            join(repositoryRoot, 'libs/telemetry/src/register.ts'),
            join(repositoryRoot, `services/${name}/src/main.ts`),
          ],
          env: {
            ...shared,
            ...env,
            GRPC_PORT: String(port),
            PORT_FILE: portFile,
            OTEL_SERVICE_NAME: name,
            ...o.env?.[name],
          },
          logPath: join(paths.logs, `${name}.log`),
          cwd: o.stateDir,
        }),
      onRestart,
    );
    processes.push(service);
    const ports = await waitReady(service, portFile, signal);
    record.metrics[name] = `127.0.0.1:${ports.metrics}`;
    o.onProgress?.(name);
    return ports;
  };

  try {
    const nats = await startNats(o, onRestart);
    processes.push(nats.process);
    await waitListens(nats, signal);
    record.nats = `nats://127.0.0.1:${nats.port}`;
    o.onProgress?.('nats-server');
    // Every life of a service has the same address: the gateway is told it once.
    const gatewayPort = o.gatewayPort === 0 ? await freePort() : o.gatewayPort;
    const ports = await Promise.all(backends.map(() => freePort()));
    const inference = `127.0.0.1:${ports[backends.indexOf('inference')]}`;
    await Promise.all(
      backends.map((name, i) =>
        startService(name, ports[i] ?? 0, {
          NATS_URL: record.nats,
          ...(name === 'lifecycle' ? { INFERENCE_ADDRS: inference } : {}),
        }),
      ),
    );
    const addresses = backends.map((name, i) => [`${name.toUpperCase()}_ADDR`, `127.0.0.1:${ports[i]}`]);
    const httpPort = o.httpPort === undefined || o.httpPort === 0 ? await freePort() : o.httpPort;
    const gateway = await startService('gateway', gatewayPort, {
      ...Object.fromEntries(addresses),
      HTTP_PORT: String(httpPort),
    });
    record.gateway = `127.0.0.1:${gateway.grpc}`;
    record.http = `127.0.0.1:${gateway.http}`;
    up = true;
    await writeRecord();
    return { record, failed: Promise.race(processes.map((process) => process.failed)), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}
