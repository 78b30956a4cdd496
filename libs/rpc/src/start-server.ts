import { setTimeout as sleep } from 'node:timers/promises';
import type { ServerOptions } from '@grpc/grpc-js';
import { Failure } from '@medmesh/errors';
import type { Logger } from '@medmesh/log';
import { readDescriptorSet } from '@medmesh/proto';
import type { Metrics } from '@medmesh/telemetry';
import { createServer, type Server, type ServerMiddleware } from 'nice-grpc';
import { ServerReflection, ServerReflectionService } from 'nice-grpc-server-reflection';
import type { ServiceBinding } from './binding.ts';
import { careForClosingConnections } from './closing-connections.ts';
import { exposeDeadline } from './deadline.ts';
import { createTerminator } from './drain.ts';
import type { Health } from './health.ts';
import { messageLimits } from './limits.ts';
import { translateErrors } from './server-errors.ts';
import { observeCalls } from './server-observation.ts';
import { serverCredentials } from './tls.ts';
import type { ServerTls } from './tls-files.ts';

export type StartServerOptions = {
  readonly host: string;
  /** 0 takes a free port. */
  readonly port: number;
  readonly services: readonly ServiceBinding[];
  readonly log: Logger;
  readonly metrics?: Metrics | undefined;
  readonly health: Health;
  /** After this long, ±10 % by chance, a connection is asked to move on, so that clients spread over new replicas. Open calls finish. */
  readonly maxConnectionAgeMs?: number | undefined;
  /** How often it asks whether a client is still there. Default: every 30 s. */
  readonly keepaliveMs?: number | undefined;
  readonly tls?: ServerTls | undefined;
  /** Runs inside observation and error translation, outermost first: authentication, limits. */
  readonly middleware?: readonly ServerMiddleware[] | undefined;
};

export type RunningServer = {
  readonly port: number;
  /**
   * Takes no more calls, ends watches at once, and gives the other calls `graceMs` to finish; what is left then ends
   * with UNAVAILABLE. Resolves within `graceMs`; a connection whose peer does not read may last until the process ends.
   * A second call joins the first.
   */
  drain(graceMs: number): Promise<void>;
};

/** Starts a gRPC server with the given services, health and reflection. Health stays as the caller sets it. */
export async function startServer(o: StartServerOptions): Promise<RunningServer> {
  careForClosingConnections();
  const terminator = createTerminator();
  const options: ServerOptions = {
    ...messageLimits,
    interceptors: [exposeDeadline],
    'grpc.enable_channelz': 0,
    // Finds clients that vanished without closing, so that their streams end and release what they hold.
    'grpc.keepalive_time_ms': o.keepaliveMs ?? 30_000,
    'grpc.keepalive_timeout_ms': 10_000,
    // grpc-js adds the ±10 % by itself, per connection.
    ...(o.maxConnectionAgeMs === undefined ? {} : { 'grpc.max_connection_age_ms': o.maxConnectionAgeMs }),
  };
  // nice-grpc types its options as those of a channel, and hands them to the grpc-js server as they are.
  let server: Server = createServer(options as Parameters<typeof createServer>[0]);
  server = server.use(observeCalls(o)).use(translateErrors);
  for (const middleware of o.middleware ?? []) server = server.use(middleware);
  server = server.use(terminator.middleware);

  for (const { definition, implementation } of o.services) server.add(definition, implementation);
  o.health.addTo(server);
  o.health.follow(o.services.map(({ name }) => name));
  server.add(
    ServerReflectionService,
    ServerReflection(
      readDescriptorSet(),
      o.services.map(({ name }) => name),
    ),
  );

  const address = `${o.host.includes(':') ? `[${o.host}]` : o.host}:${o.port}`;
  const port = await server.listen(address, serverCredentials(o.tls, o.log)).catch((cause: unknown) => {
    throw new Failure(
      'failed_precondition',
      `cannot listen on ${address}; is the port taken, or the address not this machine's?`,
      {
        reason: 'LISTEN_FAILED',
        cause,
      },
    );
  });

  let drained: Promise<void> | undefined;
  return { port, drain: (graceMs) => (drained ??= drain(server, terminator, graceMs)) };
}

/** The last part of the grace, for UNAVAILABLE to reach the callers before their connections close. */
const flushShare = 0.2;
const maxFlushMs = 500;

async function drain(server: Server, terminator: ReturnType<typeof createTerminator>, graceMs: number): Promise<void> {
  const flushMs = Math.min(maxFlushMs, graceMs * flushShare);
  const finished = new AbortController();
  void server
    .shutdown()
    .catch(() => undefined)
    .finally(() => finished.abort());
  terminator.endWatches();
  const elapsed = async (ms: number) => sleep(ms, undefined, { signal: finished.signal }).catch(() => undefined);
  await elapsed(graceMs - flushMs);
  if (!finished.signal.aborted) terminator.endAll();
  await elapsed(flushMs);
  // Not awaited: a socket with unread data ends when its peer reads on or the process exits, whichever is first.
  if (!finished.signal.aborted) server.forceShutdown();
}
