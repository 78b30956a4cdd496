import type { Publisher } from '@medmesh/events';
import type { Logger } from '@medmesh/log';
import type { Cache, ObjectStore } from '@medmesh/objects';
import type { Records } from '@medmesh/records';
import type { Health, ServiceBinding } from '@medmesh/rpc';
import type { Metrics } from '@medmesh/telemetry';
import type { NatsConnection } from '@nats-io/transport-node';

/** What a service is given: its configuration, read and frozen, and everything outside the process, connected. */
export type ServiceContext<C> = {
  readonly config: C;
  readonly log: Logger;
  readonly nc: NatsConnection;
  readonly records: Records;
  readonly publisher: Publisher;
  readonly store: ObjectStore;
  readonly cache: Cache;
  readonly metrics: Metrics;
  readonly health: Health;
  /** Aborts when the process has been asked to stop and its grace is over; work in the background should end with it. */
  readonly signal: AbortSignal;
};

/** What a service hands back once it is ready to be called. */
export type Started = {
  readonly services: readonly ServiceBinding[];
  /** Called first when the process stops: take no new work, hand back or finish what runs. */
  readonly stop?: () => Promise<void>;
  /** Called when the last call has ended: let go of memory and connections. */
  readonly close?: () => Promise<void>;
  /** The process ends by itself with this code when it settles. */
  readonly done?: Promise<number>;
  /** The exit code of a clean stop. Default 0. */
  readonly exitCode?: () => number;
};
