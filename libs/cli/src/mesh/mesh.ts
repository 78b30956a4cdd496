import { existsSync } from 'node:fs';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import { type Child, isAlive, lastWords, signalProcess, startChild } from './child.ts';
import { meshPaths, repositoryRoot } from './paths.ts';

/** The processes of a mesh, in the order in which they start. */
const backends = ['lifecycle', 'formatter', 'quantizer', 'trainer', 'inference'] as const;
type Backend = (typeof backends)[number];

export type MeshOptions = {
  stateDir: string;
  /** Port of the gateway; 0 takes a free one. */
  gatewayPort: number;
  /** OTLP/HTTP collector for traces. */
  otlpEndpoint?: string | undefined;
  /** Folders that imports and exports may touch. */
  uriRoots: string[];
  /** More environment for a process, by its name. */
  env?: Partial<Record<Backend | 'gateway', Record<string, string>>>;
  logLevel?: string;
  onProgress?: (name: string) => void;
};

/** What is written down about a running mesh. */
export type MeshRecord = { gateway: string; metrics: Record<string, string>; nats: string; processes: { name: string; pid: number; log: string }[]; stateDir: string; startTime: string };

export type Mesh = {
  record: MeshRecord;
  /** Resolves when a process ended that was not asked to. */
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
    throw new Failure('failed_precondition', `port ${port} is taken; stop what listens there or choose another by --port`, { reason: 'PORT_TAKEN' });
  }
}

/** nats-server from the project's own folder, or the PATH. */
function natsProgram(): string {
  const own = join(repositoryRoot, '.cache/bin/nats-server');
  return existsSync(own) ? own : 'nats-server';
}

/** The record of a mesh that runs in this folder, or undefined. */
export async function readMesh(stateDir: string): Promise<MeshRecord | undefined> {
  try {
    const record = JSON.parse(await readFile(meshPaths(stateDir).record, 'utf8')) as MeshRecord;
    return record.processes.some(({ pid }) => isAlive(pid)) ? record : undefined;
  } catch {
    return undefined;
  }
}

/** Stops a mesh by its record: each process by its id, the gateway first, nats-server last. */
export async function stopProcesses(processes: readonly { name: string; pid: number }[]): Promise<void> {
  for (const { pid } of processes.toReversed()) {
    signalProcess(pid, 'SIGTERM');
    const deadline = Date.now() + stopTimeoutMs;
    while (isAlive(pid) && Date.now() < deadline) await sleep(20);
    if (isAlive(pid)) signalProcess(pid, 'SIGKILL');
  }
}

type Ready = { grpc: number; metrics: number };

/** Waits for the file a service writes when it can be called; if it ends before, says why. */
async function waitReady(child: Child, portFile: string, signal: AbortSignal): Promise<Ready> {
  let ended = false;
  child.exited.then(() => {
    ended = true;
  });
  const deadline = Date.now() + readyTimeoutMs;
  for (;;) {
    signal.throwIfAborted();
    try {
      const ready = JSON.parse(await readFile(portFile, 'utf8')) as Ready & { pid?: number };
      if (ready.pid === child.pid) return ready;
    } catch {
      // Not there yet.
    }
    if (ended) throw new Failure('unavailable', `${child.name} ended at its start: ${lastWords(child.logPath)} (${child.logPath})`, { reason: 'SERVICE_FAILED' });
    if (Date.now() > deadline) {
      throw new Failure('unavailable', `${child.name} is not ready after ${readyTimeoutMs / 1000} s: ${lastWords(child.logPath)} (${child.logPath})`, { reason: 'SERVICE_FAILED' });
    }
    await sleep(25);
  }
}

async function startNats(stateDir: string, env: NodeJS.ProcessEnv, signal: AbortSignal): Promise<{ child: Child; url: string }> {
  const paths = meshPaths(stateDir);
  const port = await freePort();
  const config = join(paths.run, 'nats.conf');
  // The broker's default loses acknowledged messages at a power cut: every write is synced.
  await writeFile(
    config,
    `listen: "127.0.0.1:${port}"\njetstream { store_dir: ${JSON.stringify(paths.nats)}, sync_interval: always }\npid_file: ${JSON.stringify(join(paths.run, 'nats.pid'))}\n`,
  );
  const child = startChild({ name: 'nats-server', command: natsProgram(), args: ['-c', config], env, logPath: join(paths.logs, 'nats-server.log'), cwd: stateDir });
  let ended = false;
  child.exited.then(() => {
    ended = true;
  });
  const deadline = Date.now() + readyTimeoutMs;
  for (;;) {
    signal.throwIfAborted();
    if (ended) throw new Failure('unavailable', `nats-server ended at its start: ${lastWords(child.logPath)} (${child.logPath})`, { reason: 'SERVICE_FAILED' });
    if ((await readFile(child.logPath, 'utf8').catch(() => '')).includes(`pid=${child.pid}`) || (await listens(port))) break;
    if (Date.now() > deadline) throw new Failure('unavailable', `nats-server does not answer (${child.logPath})`, { reason: 'SERVICE_FAILED' });
    await sleep(25);
  }
  return { child, url: `nats://127.0.0.1:${port}` };
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('connect', () => (socket.destroy(), resolve(true)));
    socket.once('error', () => resolve(false));
  });
}

/**
 * Starts nats-server and the six services as processes of their own on loopback, with a file:// store. If one cannot start, all are stopped again and the
 * reason is thrown.
 */
export async function startMesh(o: MeshOptions, signal: AbortSignal): Promise<Mesh> {
  const paths = meshPaths(o.stateDir);
  const running = await readMesh(o.stateDir);
  if (running !== undefined) {
    throw new Failure('failed_precondition', `a mesh already runs in ${o.stateDir} (gateway ${running.gateway}); stop it by ./medmesh down`, { reason: 'MESH_RUNNING' });
  }
  await checkPort(o.gatewayPort);
  await rm(paths.run, { recursive: true, force: true });
  for (const dir of [paths.nats, paths.objects, paths.cache, paths.staging, paths.logs, paths.run]) await mkdir(dir, { recursive: true });

  const base: NodeJS.ProcessEnv = {
    PATH: process.env['PATH'],
    HOME: process.env['HOME'],
    NODE_COMPILE_CACHE: join(repositoryRoot, '.cache/compile'),
    OBJECT_STORE_URL: `file://${paths.objects}`,
    CACHE_DIR: paths.cache,
    STAGING_DIR: paths.staging,
    URI_ROOTS: o.uriRoots.join(','),
    LOG_LEVEL: o.logLevel ?? 'info',
    ...(o.otlpEndpoint === undefined ? {} : { OTEL_EXPORTER_OTLP_ENDPOINT: o.otlpEndpoint }),
  };
  const children: Child[] = [];
  const metrics: Record<string, string> = {};
  const stop = () => stopProcesses(children);

  const startService = (name: Backend | 'gateway', env: Record<string, string>): { child: Child; ready: Promise<Ready> } => {
    const portFile = join(paths.run, `${name}.json`);
    const child = startChild({
      name,
      command: process.execPath,
      args: ['--import', join(repositoryRoot, 'libs/telemetry/src/register.ts'), join(repositoryRoot, `services/${name}/src/main.ts`)],
      env: { ...base, ...env, PORT_FILE: portFile, OTEL_SERVICE_NAME: name, ...o.env?.[name] },
      logPath: join(paths.logs, `${name}.log`),
      cwd: o.stateDir,
    });
    children.push(child);
    const ready = waitReady(child, portFile, signal).then((ports) => {
      metrics[name] = `127.0.0.1:${ports.metrics}`;
      o.onProgress?.(name);
      return ports;
    });
    return { child, ready };
  };

  try {
    const nats = await startNats(o.stateDir, base, signal);
    children.push(nats.child);
    o.onProgress?.('nats-server');
    const started = backends.map((name) => ({ name, ...startService(name, { NATS_URL: nats.url }) }));
    const addresses: Record<string, string> = {};
    for (const { name, ready } of started) addresses[`${name.toUpperCase()}_ADDR`] = `127.0.0.1:${(await ready).grpc}`;
    const gateway = await startService('gateway', { ...addresses, GRPC_PORT: String(o.gatewayPort) }).ready;

    const record: MeshRecord = {
      gateway: `127.0.0.1:${gateway.grpc}`,
      metrics,
      nats: nats.url,
      processes: children.map(({ name, pid, logPath }) => ({ name, pid, log: logPath })),
      stateDir: o.stateDir,
      startTime: new Date().toISOString(),
    };
    await writeFile(`${paths.record}.partial`, `${JSON.stringify(record, null, 2)}\n`);
    await rename(`${paths.record}.partial`, paths.record);
    const failed = Promise.race(children.map(async (child) => ({ name: child.name, end: await child.exited, words: '', log: child.logPath }))).then(({ name, log }) => ({
      name,
      words: lastWords(log),
    }));
    return {
      record,
      failed,
      async stop() {
        await stop();
        await rm(paths.record, { force: true });
      },
    };
  } catch (error) {
    await stop();
    throw error;
  }
}
