import type { Catalog } from '@medmesh/catalog';
import type { Logger } from '@medmesh/log';
import type { ObjectStore } from '@medmesh/objects';
import type { Records } from '@medmesh/records';
import type { FormatterConfig } from './config.ts';
import type { ModelTokenizers } from './model-tokenizers.ts';

/** What the verbs of the formatter work with. */
export type FormatterDeps = {
  readonly catalog: Catalog;
  readonly records: Records;
  readonly store: ObjectStore;
  readonly tokenizers: ModelTokenizers;
  readonly log: Logger;
  readonly config: FormatterConfig;
};
