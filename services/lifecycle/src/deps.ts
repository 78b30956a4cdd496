import type { Catalog } from '@medmesh/catalog';
import type { Publisher } from '@medmesh/events';
import type { JobEvents } from '@medmesh/jobs';
import type { Logger } from '@medmesh/log';
import type { ObjectStore } from '@medmesh/objects';
import type { Records } from '@medmesh/records';
import type { JobLauncher } from './launcher.ts';

/** What the verbs of lifecycle work with. */
export type LifecycleDeps = {
  catalog: Catalog;
  records: Records;
  store: ObjectStore;
  publisher: Publisher;
  events: JobEvents;
  launcher: JobLauncher;
  log: Logger;
  now: () => number;
  signal: AbortSignal;
};
