import { Failure } from '@medmesh/errors';
import { dataset } from '@medmesh/proto';
import type { RawRow, RowLimits, Warn } from './raw-row.ts';
import { parseRow } from './read-jsonl.ts';

const { DropReasonCode } = dataset;

const quote = 0x22;
const backslash = 0x5c;
const comma = 0x2c;

/**
 * Rows of one JSON array, cut out without holding the array. Only brackets and strings are followed here; each element
 * is then parsed as JSON, so a fault costs its own row.
 */
export async function* readJsonArray(
  chunks: AsyncIterable<string>,
  limits: RowLimits,
  warn: Warn,
): AsyncGenerator<RawRow[]> {
  // before: the opening bracket has not come; after: the closing one has.
  let place: 'before' | 'inside' | 'after' = 'before';
  let depth = 0;
  let inString = false;
  let escaped = false;
  let begun: string[] = [];
  let length = 0;
  let trailing = false;

  const keep = (text: string): void => {
    length += text.length;
    if (length <= limits.maxRowLength) begun.push(text);
    else begun = [];
  };
  const take = (): RawRow | undefined => {
    const tooLong = length > limits.maxRowLength;
    const json = begun.join('').trim();
    begun = [];
    length = 0;
    if (tooLong) return { fault: DropReasonCode.FIELD_TOO_LARGE };
    return json === '' ? undefined : parseRow(json);
  };

  for await (const chunk of chunks) {
    const rows: RawRow[] = [];
    let start = 0;
    for (let i = 0; i < chunk.length; i++) {
      const c = chunk.charCodeAt(i);
      if (place === 'inside') {
        if (inString) {
          if (escaped) escaped = false;
          else if (c === backslash) escaped = true;
          else if (c === quote) inString = false;
        } else if (c === quote) {
          inString = true;
        } else if (c === 0x7b || c === 0x5b) {
          depth++;
        } else if (depth > 0 && (c === 0x7d || c === 0x5d)) {
          depth--;
        } else if (depth === 0 && (c === comma || c === 0x5d)) {
          keep(chunk.slice(start, i));
          const row = take();
          if (row !== undefined) rows.push(row);
          start = i + 1;
          if (c !== comma) place = 'after';
        }
      } else if (!isSpace(c)) {
        if (place === 'after') {
          trailing = true;
        } else if (c === 0x5b) {
          place = 'inside';
          start = i + 1;
        } else {
          throw new Failure(
            'invalid_argument',
            'the file is not a JSON array; if it holds one object a line, set format to ROW_FORMAT_JSONL',
            { reason: 'SOURCE_INVALID' },
          );
        }
      }
    }
    if (place === 'inside') keep(chunk.slice(start));
    if (rows.length > 0) yield rows;
  }
  if (place === 'before')
    throw new Failure('invalid_argument', 'the file is empty; a JSON array was expected', { reason: 'SOURCE_INVALID' });
  if (trailing) warn('text after the end of the JSON array was left out');
  if (place === 'inside') {
    warn('the JSON array is not closed; the file may be cut off');
    const row = take();
    if (row !== undefined) yield [row];
  }
}

const isSpace = (c: number): boolean => c === 0x20 || c === 0x0a || c === 0x0d || c === 0x09;
