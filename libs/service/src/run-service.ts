import { setTimeout as sleep } from 'node:timers/promises';
import { ConfigError, type commonConfig, describeConfig, loadConfig } from '@medmesh/config';
import { Failure, toFailure } from '@medmesh/errors';
import { connectNats, createPublisher, ensureStreams } from '@medmesh/events';
import { createLogger, type Logger } from '@medmesh/log';
import { type ObjectStore, openCache, openObjectStore } from '@medmesh/objects';
import { openRecords } from '@medmesh/records';
import { createHealth, startServer } from '@medmesh/rpc';
import { createMetrics, flushTelemetry } from '@medmesh/telemetry';
import type { z } from 'zod';
import { startHttpEndpoint } from './http-endpoint.ts';
import { removePortFile, writePortFile } from './port-file.ts';
import type { ServiceContext, Started } from './service-context.ts';

type CommonConfig = z.output<z.ZodObject<typeof commonConfig>>;

export type ServiceOptions<Shape extends z.core.$ZodShape> = {
  name: string;
  configSchema: z.ZodObject<Shape>;
  argv: readonly string[];
  env: Readonly<Record<string, string | undefined>>;
  /** What the service connects to. Default: both. Without NATS there are no records and no publisher, without a store no cache. */
  uses?: { nats?: boolean; store?: boolean };
  start: (context: ServiceContext<Readonly<z.output<z.ZodObject<Shape>>>>) => Promise<Started>;
};

const version = '0.1.0';
const exitConfiguration = 2;

/** Answers --help, --version and --print-config; an unknown argument is an error. True if the process has nothing else to do. */
function answersArguments(name: string, schema: z.ZodObject, argv: readonly string[]): boolean {
  const [first] = argv;
  if (first === undefined) return false;
  const help = `medmesh ${name} ${version}\n\nConfigured by environment variables; X_FILE names a file that holds X.\n\n${describeConfig(schema)}\n`;
  if (first === '--help' || first === '-h' || first === '--print-config') process.stdout.write(help);
  else if (first === '--version') process.stdout.write(`${version}\n`);
  else {
    process.stderr.write(`unknown argument ${first}; there are --help, --version and --print-config\n`);
    process.exitCode = exitConfiguration;
  }
  return true;
}

/** What a failure at start says in one line. */
function startFault(name: string, error: unknown): string {
  const system = error as { code?: unknown; port?: unknown; address?: unknown };
  if (system.code === 'EADDRINUSE')
    return `${name}: port ${String(system.port)} on ${String(system.address)} is taken; stop what listens there or choose another`;
  return `${name}: ${toFailure(error).message}`;
}

/**
 * The life of a service process: configuration, metrics, broker, store, the service itself, gRPC, ready; then, on SIGTERM or SIGINT: not ready, stop
 * taking work, drain calls, close in reverse order, exit. A second signal exits at once with 1; so does the end of the grace period.
 */
export async function runService<Shape extends z.core.$ZodShape>(o: ServiceOptions<Shape>): Promise<void> {
  if (answersArguments(o.name, o.configSchema, o.argv)) return;
  let config: Readonly<z.output<z.ZodObject<Shape>>>;
  try {
    config = loadConfig(o.configSchema, o.env);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`${o.name}: ${error.message}\n`);
    process.exitCode = exitConfiguration;
    return;
  }
  const common = config as unknown as CommonConfig;
  const log = createLogger({ service: o.name, level: common.LOG_LEVEL });
  process.exitCode = await live(o, config, common, log).catch((error: unknown) => {
    log.fatal({ err: error }, startFault(o.name, error));
    return 1;
  });
  await flushTelemetry();
  // Whatever still holds the event loop (a socket that never answers, a native thread) must not keep the process.
  process.exit();
}

async function live<Shape extends z.core.$ZodShape>(
  o: ServiceOptions<Shape>,
  config: Readonly<z.output<z.ZodObject<Shape>>>,
  common: CommonConfig,
  log: Logger,
): Promise<number> {
  const stopping = listenForStop(log);
  const abort = new AbortController();
  const closers: (() => Promise<unknown> | undefined)[] = [];
  const closeAll = async () => {
    for (const close of closers.reverse()) {
      await Promise.resolve(close()).catch((error: unknown) => log.warn({ err: error }, 'closing failed'));
    }
  };
  const metrics = createMetrics(o.name);
  const health = createHealth();
  // A stop that comes before the process is ready ends the waiting for broker and store.
  const early = AbortSignal.any([abort.signal, stopping.signal]);
  try {
    const http = await startHttpEndpoint(common.LISTEN_HOST, common.METRICS_PORT, metrics, health);
    closers.push(() => http.close());
    const context = await connectAll(o, config, common, { log, metrics, health, early, signal: abort.signal, closers });
    const started = await o.start(context);
    closers.push(() => started.close?.());
    const server = await startServer({
      host: common.LISTEN_HOST,
      port: common.GRPC_PORT,
      services: started.services,
      log,
      metrics,
      health,
    });
    if (common.PORT_FILE !== undefined) {
      const path = common.PORT_FILE;
      await writePortFile(path, { grpc: server.port, metrics: http.port });
      closers.push(() => removePortFile(path));
    }
    health.set('', true);
    health.set('ready', true);
    log.info({ grpc: server.port, metrics: http.port }, `${o.name} is ready`);

    const ended = await Promise.race([
      stopping.asked.then(() => undefined),
      ...(started.done === undefined ? [] : [started.done]),
    ]);
    log.info({}, ended === undefined ? 'stopping' : 'done');
    const hardStop = setTimeout(() => {
      log.error({}, `still not stopped after ${common.SHUTDOWN_GRACE_MS} ms; exiting`);
      process.exit(1);
    }, common.SHUTDOWN_GRACE_MS);
    hardStop.unref();
    health.set('', false);
    health.set('ready', false);
    await started.stop?.();
    await server.drain(Math.floor(common.SHUTDOWN_GRACE_MS / 2));
    abort.abort();
    await closeAll();
    clearTimeout(hardStop);
    log.info({}, `${o.name} has stopped`);
    return ended ?? started.exitCode?.() ?? 0;
  } catch (error) {
    abort.abort();
    await closeAll();
    if (stopping.signal.aborted) return 0;
    throw error;
  }
}

type Opened = {
  log: Logger;
  metrics: ServiceContext<never>['metrics'];
  health: ServiceContext<never>['health'];
  early: AbortSignal;
  signal: AbortSignal;
  closers: (() => Promise<unknown> | undefined)[];
};

/** Broker, records, store and cache, each waited for until it is there. */
async function connectAll<Shape extends z.core.$ZodShape, C>(
  o: ServiceOptions<Shape>,
  config: C,
  common: CommonConfig,
  opened: Opened,
): Promise<ServiceContext<C>> {
  const { log, metrics, health, early, signal, closers } = opened;
  const context: Partial<ServiceContext<C>> &
    Pick<ServiceContext<C>, 'config' | 'log' | 'metrics' | 'health' | 'signal'> = {
    config,
    log,
    metrics,
    health,
    signal,
  };
  const parts: Partial<{ -readonly [K in keyof ServiceContext<C>]: ServiceContext<C>[K] }> = {};
  if (o.uses?.nats !== false) {
    const nc = await connectNats({ url: common.NATS_URL, name: o.name, log, signal: early });
    closers.push(() => nc.drain());
    await ensureStreams(nc);
    parts.nc = nc;
    parts.records = await openRecords(nc);
    parts.publisher = createPublisher(nc);
  }
  if (o.uses?.store !== false) {
    parts.store = await waitForStore(common, log, early);
    parts.cache = openCache({ dir: common.CACHE_DIR, maxBytes: common.CACHE_MAX_BYTES, store: parts.store });
  }
  return withoutHoles({ ...context, ...parts });
}

const firstPauseMs = 500;
const longestPauseMs = 5_000;

/** Opens the object store; while it is away, says so and tries again until the process is asked to stop. */
async function waitForStore(common: CommonConfig, log: Logger, signal: AbortSignal): Promise<ObjectStore> {
  for (let pauseMs = firstPauseMs; ; pauseMs = Math.min(2 * pauseMs, longestPauseMs)) {
    try {
      return await openObjectStore({
        url: common.OBJECT_STORE_URL,
        accessKey: common.S3_ACCESS_KEY,
        secretKey: common.S3_SECRET_KEY,
        uriRoots: common.URI_ROOTS.split(',').filter((root) => root !== ''),
        patienceMs: 0,
        signal,
      });
    } catch (error) {
      if (!(error instanceof Failure && error.code === 'unavailable')) throw error;
      log.warn({ err: error }, `the object store does not answer; trying again in ${pauseMs} ms`);
      await sleep(pauseMs, undefined, { signal });
    }
  }
}

const parts = ['nc', 'records', 'publisher', 'store', 'cache'] as const;

/** Reading a part that the service said it does not use is a mistake in its code, told at once. */
function withoutHoles<C>(context: Partial<ServiceContext<C>>): ServiceContext<C> {
  for (const part of parts) {
    if (context[part] !== undefined) continue;
    Object.defineProperty(context, part, {
      get() {
        throw new Failure('internal', `the service reads ${part}, which it said it does not use`, {
          reason: 'CONTEXT_INCOMPLETE',
        });
      },
    });
  }
  return context as ServiceContext<C>;
}

/** SIGTERM and SIGINT ask to stop; a second one ends the process. */
function listenForStop(log: Logger): { asked: Promise<void>; signal: AbortSignal } {
  const stop = new AbortController();
  const { promise: asked, resolve } = Promise.withResolvers<void>();
  const onSignal = (name: NodeJS.Signals) => {
    if (stop.signal.aborted) {
      log.warn({ signal: name }, 'second signal: exiting at once');
      process.exit(1);
    }
    stop.abort();
    resolve();
  };
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
  return { asked, signal: stop.signal };
}
