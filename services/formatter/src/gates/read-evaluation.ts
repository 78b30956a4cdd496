import type { RowLimits } from '../rows/raw-row.ts';
import { everyColumn, openSource, type SourceFile } from '../rows/read-source.ts';
import { createEvaluationOverlap, type EvaluationOverlap } from './evaluation-overlap.ts';

/** Reads evaluation sets: every text of a row, whatever its column, also within lists and structures. Undefined without any. Rows that cannot be read are counted in a warning. */
export async function readEvaluation(
  sources: readonly SourceFile[],
  limits: RowLimits,
  warn: (warning: string) => void,
  signal: AbortSignal,
): Promise<EvaluationOverlap | undefined> {
  if (sources.length === 0) return undefined;
  const overlap = createEvaluationOverlap();
  for (const [number, source] of sources.entries()) {
    const name = `evaluation source ${number}`;
    let unreadable = 0;
    const opened = openSource(source, {
      limits,
      wanted: everyColumn,
      warn: (warning) => warn(`${name}: ${warning}`),
      onBytes: () => undefined,
      signal,
    });
    try {
      for await (const rows of opened.rows) {
        signal.throwIfAborted();
        for (const row of rows) {
          if ('fault' in row) unreadable += 1;
          else for (const text of textsWithin(row.value)) overlap.add(text);
        }
      }
    } finally {
      await opened.close();
    }
    if (unreadable > 0) warn(`${name}: ${unreadable} rows cannot be read, and nothing was compared with them`);
  }
  return overlap;
}

function* textsWithin(value: unknown): Generator<string> {
  if (typeof value === 'string') yield value;
  else if (typeof value === 'object' && value !== null)
    for (const part of Object.values(value)) yield* textsWithin(part);
}
