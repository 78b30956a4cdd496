/** What the origin publishes about a file's content: its SHA-256, or the SHA-1 that git knows it by (of `blob {size}\0` and the content). */
export type PublishedDigest = { readonly kind: 'sha256' | 'git-sha1'; readonly hex: string };

/** A file that can be imported. */
export type SourceFile = { readonly path: string; readonly sizeBytes: number; readonly digest?: PublishedDigest };

/** Where a model's files come from. */
export type ModelSource = {
  /** The commit, for hubs; empty otherwise. */
  readonly revision: string;
  readonly files: readonly SourceFile[];
  /** The file's bytes from `offset` on. */
  read(path: string, offset: number, signal: AbortSignal): AsyncIterable<Uint8Array>;
};
