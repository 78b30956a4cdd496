import { Failure } from '@medmesh/errors';
import { dataset } from '@medmesh/proto';
import { damageMark } from './decode-text.ts';
import type { RawRow, RowLimits, Warn } from './raw-row.ts';

const { DropReasonCode } = dataset;

const quote = 0x22;
const comma = 0x2c;
const feed = 0x0a;
const carriage = 0x0d;

/** Most columns a header may name. */
const maxColumns = 1024;

type Record_ = { readonly fields: readonly string[]; readonly tooLarge: boolean };

/**
 * Rows of comma-separated values (RFC 4180) with a header line. Quoted fields may hold commas, quotes (doubled) and line
 * breaks. A record with too few fields lacks the last columns; surplus fields are left out. Blank lines are no rows.
 *
 * Written here because each fault must cost its own row, by index, whatever the declared encoding; a database reader
 * stops at the first or loses count.
 */
export async function* readCsv(chunks: AsyncIterable<string>, limits: RowLimits, warn: Warn): AsyncGenerator<RawRow[]> {
  let header: readonly string[] | undefined;
  const split = createRecordSplitter(limits);
  const toRow = (record: Record_): RawRow | undefined => {
    if (header === undefined) {
      header = checkHeader(record);
      return undefined;
    }
    if (record.tooLarge) return { fault: DropReasonCode.FIELD_TOO_LARGE };
    if (record.fields.some((f) => f.includes(damageMark))) return { fault: DropReasonCode.BAD_ENCODING };
    const value: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
    header.forEach((name, i) => {
      if (i < record.fields.length) value[name] = record.fields[i];
    });
    return { value };
  };
  for await (const chunk of chunks) {
    const rows = split.push(chunk).flatMap((record) => toRow(record) ?? []);
    if (rows.length > 0) yield rows;
  }
  const end = split.end();
  if (end.openQuote) warn('the quote of the last record is not closed; the file may be cut off');
  const rows = end.records.flatMap((record) => toRow(record) ?? []);
  if (rows.length > 0) yield rows;
  if (header === undefined) {
    throw new Failure('invalid_argument', 'the file is empty; a CSV header line was expected', {
      reason: 'SOURCE_INVALID',
    });
  }
}

function checkHeader(record: Record_): readonly string[] {
  const names = record.fields.map((f) => f.trim());
  if (record.tooLarge || names.length > maxColumns || names.some((n) => n.includes(damageMark))) {
    throw new Failure(
      'invalid_argument',
      `the CSV header line cannot be read: it must be valid in the declared encoding and name at most ${maxColumns} columns`,
      { reason: 'SOURCE_INVALID' },
    );
  }
  if (new Set(names).size !== names.length) {
    throw new Failure('invalid_argument', 'the CSV header line names a column twice', { reason: 'SOURCE_INVALID' });
  }
  return names;
}

/** Cuts text, however it is chunked, into records of fields. */
function createRecordSplitter(limits: RowLimits) {
  let fields: string[] = [];
  let field: string[] = [];
  let fieldLength = 0;
  let recordLength = 0;
  let tooLarge = false;
  // plain: outside quotes. quoted: inside. closed: right behind a quote inside, which ends the field or doubles.
  let state: 'start' | 'plain' | 'quoted' | 'closed' = 'start';
  let afterCarriage = false;

  const keep = (text: string): void => {
    fieldLength += text.length;
    recordLength += text.length;
    if (fieldLength > limits.maxFieldLength || recordLength > limits.maxRowLength) tooLarge = true;
    if (tooLarge) field = [];
    else if (text !== '') field.push(text);
  };
  const endField = (): void => {
    // The comma counts too: a line of nothing but commas must come to an end.
    recordLength += 1;
    if (recordLength > limits.maxRowLength) tooLarge = true;
    if (fields.length < maxColumns && !tooLarge) fields.push(field.length === 1 ? field[0]! : field.join(''));
    field = [];
    fieldLength = 0;
    state = 'start';
  };
  const endRecord = (out: Record_[]): void => {
    const blank = fields.length === 0 && fieldLength === 0 && state === 'start';
    endField();
    if (!blank) out.push({ fields: tooLarge ? [] : fields, tooLarge });
    fields = [];
    recordLength = 0;
    tooLarge = false;
  };

  return {
    push(chunk: string): Record_[] {
      const out: Record_[] = [];
      let start = 0;
      for (let i = 0; i < chunk.length; i++) {
        const c = chunk.charCodeAt(i);
        // A line ends with CR, LF or both; the LF of a pair ends nothing more.
        if (afterCarriage) {
          afterCarriage = false;
          if (c === feed) {
            start = i + 1;
            continue;
          }
        }
        if (state === 'quoted') {
          if (c !== quote) continue;
          keep(chunk.slice(start, i));
          start = i + 1;
          state = 'closed';
        } else if (c === quote && state === 'closed') {
          keep('"');
          start = i + 1;
          state = 'quoted';
        } else if (c === quote && state === 'start') {
          start = i + 1;
          state = 'quoted';
        } else if (c === comma || c === feed || c === carriage) {
          keep(chunk.slice(start, i));
          start = i + 1;
          if (c === comma) {
            endField();
            // The field after a comma exists even when nothing follows.
            state = 'start';
          } else {
            endRecord(out);
            afterCarriage = c === carriage;
          }
        } else if (state !== 'plain') {
          state = 'plain';
        }
      }
      keep(chunk.slice(start));
      return out;
    },
    end(): { records: Record_[]; openQuote: boolean } {
      const out: Record_[] = [];
      const openQuote = state === 'quoted';
      endRecord(out);
      return { records: out, openQuote };
    },
  };
}
