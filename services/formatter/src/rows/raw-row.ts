import type { dataset } from '@medmesh/proto';

export type DropCode = dataset.DropReasonCode;

/** One row as a file holds it: the object that was read, or why none could be. */
export type RawRow = { readonly value: Readonly<Record<string, unknown>> } | { readonly fault: DropCode };

/** Bounds on what one row may take, in UTF-16 code units of decoded text. */
export type RowLimits = {
  /** Longest text of one field. */
  readonly maxFieldLength: number;
  /** Longest encoded row: a JSON text or a CSV record. What is beyond is skipped, never kept. */
  readonly maxRowLength: number;
};

/** Where a reader reports what it repaired. Texts name sources by number and never hold what was read. */
export type Warn = (warning: string) => void;
