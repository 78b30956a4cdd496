import type { commonConfig } from '@medmesh/config';
import type { Publisher } from '@medmesh/events';
import type { Logger } from '@medmesh/log';
import type { Cache, ObjectStore } from '@medmesh/objects';
import type { Records } from '@medmesh/records';
import type { Health, ServerMiddleware, ServerTls, ServiceBinding } from '@medmesh/rpc';
import type { Metrics } from '@medmesh/telemetry';
import type { NatsConnection } from '@nats-io/transport-node';
import type { z } from 'zod';

/** What every service reads from its environment. */
export type CommonConfig = z.output<z.ZodObject<typeof commonConfig>>;

/** What a service is given: its configuration and everything that is open. */
export type ServiceContext<C> = {
  readonly name: string;
  readonly config: Readonly<C>;
  readonly log: Logger;
  readonly nc: NatsConnection;
  readonly records: Records;
  readonly publisher: Publisher;
  readonly store: ObjectStore;
  readonly cache: Cache;
  readonly metrics: Metrics;
  readonly health: Health;
  /** Aborts when the process has stopped taking and finishing work, just before its connections close. */
  readonly signal: AbortSignal;
};

/** What a service hands over once it has started. */
export type Started = {
  readonly services: readonly ServiceBinding[];
  /** Certificates of the gRPC server; without them it speaks in clear. */
  readonly tls?: ServerTls | undefined;
  /** Runs before every call, inside observation: authentication, limits. */
  readonly middleware?: readonly ServerMiddleware[];
  /** Ports that the service itself listens on, by name, for the port file and the log. */
  readonly ports?: Readonly<Record<string, number>>;
  /** Takes no more work, and finishes or hands back what it has. Called while open calls still finish. */
  stop?(): Promise<void>;
  /** Releases the rest, after the last call. */
  close?(): Promise<void>;
  /** For a process that ends by itself: resolves with its exit code. */
  readonly done?: Promise<number>;
  /** The exit code of a stop in order; 0 without it. */
  readonly exitCode?: number | (() => number);
};
