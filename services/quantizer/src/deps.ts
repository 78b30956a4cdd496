import type { Catalog } from '@medmesh/catalog';
import type { Logger } from '@medmesh/log';
import type { Cache, ObjectStore } from '@medmesh/objects';
import type { QuantizerConfig } from './config.ts';

/** What the verbs of the quantizer work with. */
export type QuantizerDeps = { catalog: Catalog; store: ObjectStore; cache: Cache; log: Logger; config: QuantizerConfig };

/** What a long-running verb reports while it works. */
export type Report = (phase: 'DOWNLOAD' | 'VERIFY' | 'QUANTIZE' | 'MERGE' | 'STORE', doneBytes: number, totalBytes: number) => void;
