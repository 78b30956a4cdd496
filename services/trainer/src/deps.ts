import type { Catalog } from '@medmesh/catalog';
import type { Publisher } from '@medmesh/events';
import type { JobEvents } from '@medmesh/jobs';
import type { Logger } from '@medmesh/log';
import type { Cache, ObjectStore } from '@medmesh/objects';
import type { TrainerConfig } from './config.ts';

/** What a worker works with. */
export type TrainerDeps = {
  catalog: Catalog;
  store: ObjectStore;
  cache: Cache;
  events: JobEvents;
  publisher: Publisher;
  log: Logger;
  config: TrainerConfig;
  worker: string;
  now: () => number;
  /** The GPU cannot be used again in this process, which must end; its work has gone back. */
  onDeviceLost: () => void;
};
