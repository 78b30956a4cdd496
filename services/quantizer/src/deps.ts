import type { Catalog } from '@medmesh/catalog';
import type { Logger } from '@medmesh/log';
import type { Cache, ObjectStore } from '@medmesh/objects';
import type { QuantizerConfig } from './config.ts';

/** What the verbs of the quantizer work with. */
export type QuantizerDeps = {
  catalog: Catalog;
  store: ObjectStore;
  cache: Cache;
  log: Logger;
  config: QuantizerConfig;
  /** Whether an operation is done, or no longer known: nobody will finish what it began. */
  hasEnded: (operation: string) => Promise<boolean>;
};

export type Phase = 'DOWNLOAD' | 'VERIFY' | 'QUANTIZE' | 'MERGE' | 'CONVERT' | 'STORE';

/** What a long-running verb reports while it works. */
export type Report = (phase: Phase, doneBytes: number, totalBytes: number) => void;

/** One run of a long-running verb. After a crash there is another one with the same operation: it must end as the first would have. */
export type Run = {
  /** `operations/{uuid}`. */
  readonly operation: string;
  readonly report: Report;
  /** Aborts when the operation is cancelled, or when this process stops and another one goes on. */
  readonly signal: AbortSignal;
};
