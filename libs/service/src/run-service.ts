import { renameSync, writeFileSync } from 'node:fs';
import { ConfigError, type Environment, loadConfig } from '@medmesh/config';
import { Failure, toFailure } from '@medmesh/errors';
import { createLogger, type Logger } from '@medmesh/log';
import { createHealth, startServer } from '@medmesh/rpc';
import { createMetrics, flushTelemetry } from '@medmesh/telemetry';
import type { z } from 'zod';
import { answerArguments } from './command-line.ts';
import { startMetricsServer } from './metrics-server.ts';
import { openNats, openStorage } from './open-connections.ts';
import type { CommonConfig, ServiceContext, Started } from './service-context.ts';

export type ServiceOptions<Schema extends z.ZodObject> = {
  /** E.g. `trainer`. */
  readonly name: string;
  /** The service's variables; it spreads `commonConfig`. */
  readonly configSchema: Schema;
  /** Without the program's name. */
  readonly argv: readonly string[];
  readonly env: Environment;
  /** What it connects to. Default: both. Without NATS the context has no nc, records and publisher; without a store, no store and cache. */
  readonly uses?: { readonly nats?: boolean; readonly store?: boolean };
  /** Opens what the service needs besides the context, and returns what it serves. */
  readonly start: (context: ServiceContext<z.output<Schema>>) => Promise<Started>;
};

/** Exit codes of every service; a service may add its own. */
const exitCodes = { done: 0, failed: 1, misconfigured: 2 } as const;

/** After this, a connection is asked to move on, so that clients find the replicas that came since. */
const maxConnectionAgeMs = 5 * 60 * 1000;
/** The end of the grace, for connections to close. */
const closingMs = 1_500;

/** What is open, in the order it was opened; closed in reverse. */
type Closer = { what: string; close: () => Promise<void> };

/**
 * The life of a process: read the configuration, open the connections (waiting for those that are down), start the service, listen, tell that it is
 * ready, wait for SIGTERM or for the service to be done, finish, close in reverse order, exit.
 * A second signal ends it at once with 1; so does a stop that takes longer than SHUTDOWN_GRACE_MS.
 */
export async function runService<Schema extends z.ZodObject>(o: ServiceOptions<Schema>): Promise<void> {
  const answer = answerArguments(o.name, o.configSchema, o.argv);
  if (answer !== undefined) {
    (answer.exitCode === 0 ? process.stdout : process.stderr).write(answer.text);
    process.exitCode = answer.exitCode;
    return;
  }
  let config: z.output<Schema>;
  try {
    config = loadConfig(o.configSchema, o.env) as z.output<Schema>;
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`medmesh ${o.name}: ${error.message}\n`);
    process.exitCode = exitCodes.misconfigured;
    return;
  }
  // Every schema spreads commonConfig; the type of a schema in general cannot say so.
  const common = config as unknown as CommonConfig;
  const log = createLogger({ service: o.name, level: common.LOG_LEVEL });
  watchForDefects(log);
  const { stopRequest, forget } = watchSignals(log);
  const code = await live(o, config, common, log, stopRequest);
  forget();
  await flushTelemetry();
  log.info({ exit_code: code }, 'stopped');
  process.exit(code);
}

async function live<Schema extends z.ZodObject>(
  o: ServiceOptions<Schema>,
  config: z.output<Schema>,
  common: CommonConfig,
  log: Logger,
  stopRequest: AbortSignal,
): Promise<number> {
  const closers: Closer[] = [];
  const lifetime = new AbortController();
  try {
    const metrics = createMetrics(o.name);
    const health = createHealth();
    const host = common.LISTEN_HOST;
    const metricsServer = await startMetricsServer({ host, port: common.METRICS_PORT, metrics, health });
    closers.push({ what: 'the metrics server', close: () => metricsServer.close() });
    const nats =
      o.uses?.nats === false ? unused('nc', 'records', 'publisher') : await openNats(o.name, common, log, stopRequest);
    if (o.uses?.nats !== false) {
      closers.push({
        what: 'the connection to NATS',
        close: async () => (nats.nc.isClosed() ? undefined : nats.nc.drain()),
      });
    }
    const storage = o.uses?.store === false ? unused('store', 'cache') : await openStorage(common, log, stopRequest);
    if (o.uses?.store !== false) closers.push({ what: 'the cache', close: () => storage.cache.close() });

    const { signal } = lifetime;
    const context = { name: o.name, config, log, metrics, health, signal };
    const started = await o.start(withParts(context, nats, storage));
    closers.push({ what: 'the service', close: async () => started.close?.() });
    const server = await startServer({
      host,
      port: common.GRPC_PORT,
      services: started.services,
      log,
      metrics,
      health,
      maxConnectionAgeMs,
      tls: started.tls,
      middleware: started.middleware,
    }).catch(async (error: unknown) => {
      await started.stop?.();
      throw error;
    });
    const ports = { grpc: server.port, metrics: metricsServer.port, ...started.ports };
    if (common.PORT_FILE !== undefined) {
      writeAtOnce(common.PORT_FILE, `${JSON.stringify({ ...ports, pid: process.pid })}\n`);
    }
    const ready = (serving: boolean): void => {
      for (const name of ['', 'ready']) health.set(name, serving);
    };
    ready(true);
    log.info({ ...ports, host }, `${o.name} is ready on ${host}:${server.port}`);

    const finished = started.done?.catch((error: unknown) => {
      logFatal(log, error, 'the service ended with an error');
      return exitCodes.failed;
    });
    await Promise.race([abortOf(stopRequest), ...(finished === undefined ? [] : [finished])]);
    const deadline = capShutdown(common.SHUTDOWN_GRACE_MS, log);
    ready(false);
    log.info({ grace_ms: common.SHUTDOWN_GRACE_MS }, 'stopping: taking no more work');
    // At the same time: long work is being handed back while open calls finish.
    const results = await Promise.allSettled([
      started.stop?.(),
      server.drain(Math.max(0, common.SHUTDOWN_GRACE_MS - closingMs)),
    ]);
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) log.error({ err: toFailure(failed.reason) }, 'could not stop in order');
    // A service with an end of its own comes to it now, and names its code.
    const code = await (finished ?? (typeof started.exitCode === 'function' ? started.exitCode() : started.exitCode));
    lifetime.abort();
    await closeAll(closers, log);
    clearTimeout(deadline);
    if (failed !== undefined) return exitCodes.failed;
    return code ?? exitCodes.done;
  } catch (error) {
    lifetime.abort();
    const stopped = stopRequest.aborted;
    if (stopped) log.info('stopped before it was ready');
    else logFatal(log, error, 'could not start');
    const deadline = capShutdown(common.SHUTDOWN_GRACE_MS, log);
    await closeAll(closers, log);
    clearTimeout(deadline);
    return stopped ? exitCodes.done : exitCodes.failed;
  }
}

type Parts = Pick<ServiceContext<unknown>, 'nc' | 'records' | 'publisher' | 'store' | 'cache'>;

/** Parts that the service said it does not use: reading one is a mistake in its code, told at once. */
function unused<K extends keyof Parts>(...names: K[]): Pick<Parts, K> {
  const hole = (name: K) => ({
    enumerable: true,
    get(): never {
      throw new Failure('internal', `the service reads ${name}, which it said it does not use`, {
        reason: 'CONTEXT_INCOMPLETE',
      });
    },
  });
  return Object.defineProperties({}, Object.fromEntries(names.map((name) => [name, hole(name)]))) as Pick<Parts, K>;
}

/** Joins objects without reading their parts. */
const withParts = <A extends object, B extends object, C extends object>(a: A, b: B, c: C): A & B & C =>
  Object.defineProperties(a, { ...Object.getOwnPropertyDescriptors(b), ...Object.getOwnPropertyDescriptors(c) }) as A &
    B &
    C;

const abortOf = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });

async function closeAll(closers: Closer[], log: Logger): Promise<void> {
  for (const { what, close } of closers.toReversed()) {
    try {
      await close();
    } catch (error) {
      log.warn({ err: toFailure(error) }, `could not close ${what}`);
    }
  }
}

/** Ends the process if stopping hangs. */
function capShutdown(graceMs: number, log: Logger): NodeJS.Timeout {
  return setTimeout(() => {
    log.fatal({ grace_ms: graceMs }, 'stopping took longer than SHUTDOWN_GRACE_MS; ending anyway');
    process.exit(exitCodes.failed);
  }, graceMs);
}

function watchSignals(log: Logger): { stopRequest: AbortSignal; forget: () => void } {
  const request = new AbortController();
  const onSignal = (name: NodeJS.Signals): void => {
    if (request.signal.aborted) {
      log.warn({ signal: name }, 'a second signal: ending at once');
      process.exit(exitCodes.failed);
    }
    log.info({ signal: name }, 'asked to stop');
    request.abort(new Failure('cancelled', `the process was asked to stop by ${name}`, { reason: 'PROCESS_STOPPING' }));
  };
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
  return {
    stopRequest: request.signal,
    forget: () => {
      process.off('SIGTERM', onSignal);
      process.off('SIGINT', onSignal);
    },
  };
}

/** What nobody caught is a defect, and the process's state is unknown: it ends, and whoever runs it starts it anew. */
function watchForDefects(log: Logger): void {
  const end = (what: string) => (error: unknown) => {
    logFatal(log, error, what);
    process.exit(exitCodes.failed);
  };
  process.on('uncaughtException', end('an error was caught by nobody'));
  process.on('unhandledRejection', end('a rejection was handled by nobody'));
}

/** One line that tells what to do, where the error is one that does. */
function logFatal(log: Logger, error: unknown, what: string): void {
  const failure = toFailure(error);
  log.fatal({ err: failure }, failure.reason === 'UNFORESEEN' ? what : `${what}: ${failure.message}`);
}

/** Whoever waits for the file never sees half of it. */
function writeAtOnce(path: string, text: string): void {
  const temporary = `${path}.${process.pid}.tmp`;
  writeFileSync(temporary, text);
  renameSync(temporary, path);
}
