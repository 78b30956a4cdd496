import { DuckDBInstance } from '@duckdb/node-api';
import { Failure } from '@medmesh/errors';
import type { RawRow } from './raw-row.ts';

/** What the reader may use besides the rows it hands out. */
const engineMemory = '192MB';

/**
 * Rows of a Parquet file, about 2,048 at a time. Only columns that `wanted` names (in lower case) are read. Lists and
 * structures arrive as JSON text, other types that are not text as they are.
 */
export async function* readParquet(
  path: string,
  wanted: ReadonlySet<string>,
  signal: AbortSignal,
): AsyncGenerator<RawRow[]> {
  const instance = await DuckDBInstance.create(':memory:', {
    memory_limit: engineMemory,
    threads: '1',
    // The file is untrusted: its reader may open this one path and nothing else.
    autoinstall_known_extensions: 'false',
    autoload_known_extensions: 'false',
    preserve_insertion_order: 'true',
  });
  const connection = await instance.connect();
  const onAbort = (): void => connection.interrupt();
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    const file = `read_parquet('${path.replaceAll("'", "''")}')`;
    const described = await connection.runAndReadAll(`DESCRIBE SELECT * FROM ${file}`);
    const columns = described
      .getRows()
      .map(([name, type]) => ({ name: String(name), type: String(type) }))
      .filter((c) => wanted.has(c.name.toLowerCase()));
    if (columns.length === 0) {
      // The rows exist all the same: each lacks its fields.
      const counted = await connection.runAndReadAll(`SELECT count(*) FROM ${file}`);
      for (let left = Number(counted.getRows()[0]![0]); left > 0; left -= 2048) {
        yield Array.from({ length: Math.min(left, 2048) }, () => ({ value: {} }));
      }
      return;
    }
    const list = columns.map(({ name, type }) => {
      const quoted = `"${name.replaceAll('"', '""')}"`;
      return /\[\]$|^STRUCT|^MAP|^JSON/.test(type) ? `to_json(${quoted})::VARCHAR` : quoted;
    });
    const result = await connection.stream(`SELECT ${list.join(', ')} FROM ${file}`);
    for (;;) {
      const chunk = await result.fetchChunk();
      if (chunk === null || chunk.rowCount === 0) return;
      signal.throwIfAborted();
      yield chunk.getRows().map((values) => ({
        value: Object.fromEntries(values.map((v, i) => [columns[i]!.name, v])),
      }));
    }
  } catch (cause) {
    signal.throwIfAborted();
    if (cause instanceof Failure) throw cause;
    // The reader's message can quote values, so only its kind is told.
    const kind =
      cause instanceof Error
        ? (/^(Invalid Input|IO|Out of Memory|Binder|Conversion|Serialization) Error/.exec(cause.message)?.[0] ??
          'error')
        : 'error';
    throw new Failure(
      'invalid_argument',
      `the Parquet file cannot be read (${kind}); it may be damaged, or hold text that is not UTF-8`,
      {
        reason: 'SOURCE_INVALID',
      },
    );
  } finally {
    signal.removeEventListener('abort', onAbort);
    connection.closeSync();
    instance.closeSync();
  }
}
