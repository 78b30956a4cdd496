import { dataset } from '@medmesh/proto';
import type { FormatterDeps } from '../deps.ts';
import { erasedMark } from '../pipeline/map-row.ts';
import { openableSource } from '../prepare-format.ts';
import type { RawRow, RowLimits } from '../rows/raw-row.ts';
import { everyColumn, openSource } from '../rows/read-source.ts';

export type RewrittenSource = {
  /** Rows of the subject that the source held. */
  readonly rowCount: number;
  /** The same source without them, as a blob of JSON Lines. Undefined if there were none. */
  readonly replacement: dataset.RowSource | undefined;
};

/**
 * Looks for rows of a subject and, where there are some, stores the source again without them. Every row keeps its place:
 * where one was erased a mark stands, and a row that could not be read becomes one that is no object.
 */
export async function rewriteSource(
  deps: Pick<FormatterDeps, 'store'>,
  source: dataset.RowSource,
  subjectColumns: ReadonlySet<string>,
  subject: string,
  limits: RowLimits,
  signal: AbortSignal,
): Promise<RewrittenSource> {
  const isSubjects = (row: RawRow): boolean =>
    'value' in row &&
    Object.entries(row.value).some(([name, value]) => value === subject && subjectColumns.has(name.toLowerCase()));
  let rowCount = 0;
  for await (const row of rowsOf(deps, source, limits, signal)) rowCount += Number(isSubjects(row));
  if (rowCount === 0) return { rowCount, replacement: undefined };

  async function* lines(): AsyncGenerator<Uint8Array> {
    for await (const row of rowsOf(deps, source, limits, signal)) {
      const kept = isSubjects(row) ? { [erasedMark]: true } : 'value' in row ? row.value : [];
      yield Buffer.from(`${JSON.stringify(kept, bigIntsAsNumbers)}\n`);
    }
  }
  const { digest } = await deps.store.putBlob(lines(), { signal });
  return {
    rowCount,
    replacement: { uri: digest, fileName: 'rows.jsonl', format: dataset.RowFormat.JSONL, charset: '' },
  };
}

async function* rowsOf(
  deps: Pick<FormatterDeps, 'store'>,
  source: dataset.RowSource,
  limits: RowLimits,
  signal: AbortSignal,
): AsyncGenerator<RawRow> {
  const opened = openSource(openableSource(deps, source, 'source'), {
    limits,
    wanted: everyColumn,
    warn: () => undefined,
    onBytes: () => undefined,
    signal,
  });
  try {
    for await (const rows of opened.rows) {
      signal.throwIfAborted();
      yield* rows;
    }
  } finally {
    await opened.close();
  }
}

/** 64-bit numbers of columnar files. They are no text, so no row is trained on them. */
const bigIntsAsNumbers = (_: string, value: unknown): unknown => (typeof value === 'bigint' ? Number(value) : value);
