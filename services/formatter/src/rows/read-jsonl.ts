import { dataset } from '@medmesh/proto';
import { damageMark } from './decode-text.ts';
import type { RawRow, RowLimits } from './raw-row.ts';

const { DropReasonCode } = dataset;

/** Rows of JSON Lines. Blank lines are no rows. */
export async function* readJsonl(chunks: AsyncIterable<string>, limits: RowLimits): AsyncGenerator<RawRow[]> {
  let begun: string[] = [];
  let length = 0;
  const take = (end: string): RawRow | undefined => {
    length += end.length;
    const tooLong = length > limits.maxRowLength;
    const line = tooLong ? '' : begun.length === 0 ? end : begun.join('') + end;
    begun = [];
    length = 0;
    if (tooLong) return { fault: DropReasonCode.FIELD_TOO_LARGE };
    return line.trim() === '' ? undefined : parseRow(line);
  };
  for await (const chunk of chunks) {
    const rows: RawRow[] = [];
    let start = 0;
    for (let feed = chunk.indexOf('\n'); feed >= 0; feed = chunk.indexOf('\n', start)) {
      const row = take(chunk.slice(start, feed));
      if (row !== undefined) rows.push(row);
      start = feed + 1;
    }
    length += chunk.length - start;
    // What is beyond the limit is counted but not kept.
    if (length <= limits.maxRowLength) begun.push(chunk.slice(start));
    else begun = [];
    if (rows.length > 0) yield rows;
  }
  const last = length > 0 ? takeLast(begun, length, limits) : undefined;
  if (last !== undefined) yield [last];
}

function takeLast(begun: readonly string[], length: number, limits: RowLimits): RawRow | undefined {
  if (length > limits.maxRowLength) return { fault: DropReasonCode.FIELD_TOO_LARGE };
  const line = begun.join('');
  return line.trim() === '' ? undefined : parseRow(line);
}

/** One JSON object, or the reason why it is none. */
export function parseRow(json: string): RawRow {
  if (json.includes(damageMark)) return { fault: DropReasonCode.BAD_ENCODING };
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    // The parser's message quotes the row, so it goes nowhere.
    return { fault: DropReasonCode.BAD_JSON };
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return { fault: DropReasonCode.BAD_JSON };
  return { value: value as Record<string, unknown> };
}
