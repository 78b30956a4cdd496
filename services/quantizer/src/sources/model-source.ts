/** A file that can be imported. `sha256` is set where the origin publishes it. */
export type SourceFile = { path: string; sizeBytes: number; sha256?: string };

/** Where a model's files come from. */
export type ModelSource = {
  /** The commit, for hubs; empty otherwise. */
  revision: string;
  files: SourceFile[];
  /** The file's bytes from `offset` on. */
  read(path: string, offset: number, signal: AbortSignal): AsyncIterable<Uint8Array>;
};
