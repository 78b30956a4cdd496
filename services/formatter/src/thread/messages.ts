import type { StoredBlob } from '@medmesh/objects';
import type { dataset } from '@medmesh/proto';
import type { FormatLimits, FormatProgress, FormatResult } from '../pipeline/format-rows.ts';
import type { SourceFormat } from '../rows/source-format.ts';
import type { FailureRecord } from './failure-record.ts';

export type ThreadSource = { readonly format: SourceFormat; readonly path: string | undefined };

/** What a format thread is started with. Holds no rows. */
export type ThreadTask = {
  readonly sources: readonly ThreadSource[];
  /** Evaluation sets; their numbers go on where those of the sources end. */
  readonly evaluation: readonly ThreadSource[];
  /** A folder with the tokenizer's files. They are read before anything else is asked for. */
  readonly tokenizerDir: string;
  /** `ResolvedTemplate.canonical`. */
  readonly template: string;
  readonly limits: FormatLimits;
  readonly spec: dataset.DatasetVersionSpec;
  /** Whether shards are wanted; otherwise the rows are checked and counted. */
  readonly keep: boolean;
};

/** What the thread asks the service for, and what it is answered. */
export type ThreadCalls = {
  /** The next bytes of a source, from its beginning; undefined after its end. */
  read: { argument: number; answer: Uint8Array | undefined };
  /** Lets go of a source that was not read to its end. */
  close: { argument: number; answer: undefined };
  /** Stores a shard. */
  store: { argument: Uint8Array; answer: StoredBlob };
};

export type CallName = keyof ThreadCalls;

/** From the thread to the service. */
export type FromThread =
  | { readonly kind: 'tokenizer loaded' }
  | { readonly kind: 'progress'; readonly progress: FormatProgress }
  | { readonly kind: 'call'; readonly id: number; readonly name: CallName; readonly argument: number | Uint8Array }
  | { readonly kind: 'result'; readonly result: FormatResult }
  | { readonly kind: 'failure'; readonly failure: FailureRecord };

/** From the service to the thread. */
export type ToThread =
  | { readonly kind: 'answer'; readonly id: number; readonly answer: ThreadCalls[CallName]['answer'] }
  | { readonly kind: 'refusal'; readonly id: number; readonly failure: FailureRecord }
  | { readonly kind: 'abort'; readonly failure: FailureRecord };

/** Bytes in memory of their own, so that they can be handed to the other thread instead of being copied there. */
export const ownBytes = (bytes: Uint8Array): Uint8Array<ArrayBuffer> => new Uint8Array(bytes);
