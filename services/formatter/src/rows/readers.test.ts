import fc from 'fast-check';
import iconv from 'iconv-lite';
import { describe, expect, test } from 'vitest';
import { decodeText } from './decode-text.ts';
import type { RawRow, RowLimits } from './raw-row.ts';
import { readCsv } from './read-csv.ts';
import { readJsonArray } from './read-json-array.ts';
import { readJsonl } from './read-jsonl.ts';

const limits: RowLimits = { maxFieldLength: 1000, maxRowLength: 2000 };
const BAD_ENCODING = 6;
const BAD_JSON = 7;
const FIELD_TOO_LARGE = 11;

type Reader = (chunks: AsyncIterable<string>, limits: RowLimits, warn: (w: string) => void) => AsyncIterable<RawRow[]>;

async function* cut(bytes: Uint8Array, sizes: readonly number[]): AsyncGenerator<Uint8Array> {
  let at = 0;
  for (let i = 0; at < bytes.length; i++) {
    const size = sizes.length === 0 ? 7 : Math.max(1, sizes[i % sizes.length]!);
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

async function read(
  reader: Reader,
  text: string | Uint8Array,
  o: { charset?: string; sizes?: readonly number[]; warnings?: string[] } = {},
): Promise<RawRow[]> {
  const warn = (w: string): void => void o.warnings?.push(w);
  const rows: RawRow[] = [];
  const bytes = typeof text === 'string' ? Buffer.from(text) : text;
  const decoded = decodeText(cut(bytes, o.sizes ?? []), o.charset ?? 'utf-8', warn);
  for await (const group of reader(decoded, limits, warn)) rows.push(...group);
  return rows;
}

const values = (rows: readonly RawRow[]): unknown[] => rows.map((r) => ('value' in r ? { ...r.value } : r.fault));
const sizes = fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 6 });
const record = fc.dictionary(
  fc.string({ unit: 'binary', minLength: 1, maxLength: 5 }),
  fc.oneof(fc.string({ unit: 'binary' }), fc.integer(), fc.constant(null)),
  { noNullPrototype: true },
);

describe('JSON Lines', () => {
  test('come back however the bytes are cut', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(record, { maxLength: 5 }),
        sizes,
        fc.constantFrom('\n', '\r\n', '\n\n'),
        async (rows, s, end) => {
          const text = rows.map((r) => JSON.stringify(r)).join(end);
          expect(values(await read(readJsonl, text, { sizes: s }))).toEqual(JSON.parse(JSON.stringify(rows)));
        },
      ),
    );
  });

  test('a line that is no object is BAD_JSON and costs only itself', async () => {
    const text = '{"a":1}\n{"a":\nnull\n[1]\n"text"\n{"a":2}';
    expect(values(await read(readJsonl, text))).toEqual([{ a: 1 }, BAD_JSON, BAD_JSON, BAD_JSON, BAD_JSON, { a: 2 }]);
  });

  test('invalid UTF-8 is BAD_ENCODING in its own line', async () => {
    const bytes = Buffer.concat([
      Buffer.from('{"a":"好"}\n{"a":"'),
      Buffer.from([0xe5, 0xa5]),
      Buffer.from('"}\n{"a":"吗"}\n'),
    ]);
    for (const size of [1, 2, 3, 100]) {
      expect(values(await read(readJsonl, bytes, { sizes: [size] }))).toEqual([{ a: '好' }, BAD_ENCODING, { a: '吗' }]);
    }
  });

  test('a file cut off within a character is BAD_ENCODING in its last line', async () => {
    const bytes = Buffer.from('{"a":"好"}\n{"a":"好').subarray(0, -1);
    expect(values(await read(readJsonl, bytes))).toEqual([{ a: '好' }, BAD_ENCODING]);
  });

  test('a replacement character that was written on purpose is text', async () => {
    expect(values(await read(readJsonl, '{"a":"\uFFFD"}'))).toEqual([{ a: '\uFFFD' }]);
  });

  test('a line beyond the limit is FIELD_TOO_LARGE and is skipped without being kept', async () => {
    const text = `{"a":1}\n{"a":"${'x'.repeat(50_000)}"}\n{"a":2}\n${'y'.repeat(3000)}`;
    expect(values(await read(readJsonl, text))).toEqual([{ a: 1 }, FIELD_TOO_LARGE, { a: 2 }, FIELD_TOO_LARGE]);
  });

  test('a byte order mark is removed and told', async () => {
    const warnings: string[] = [];
    expect(values(await read(readJsonl, '\uFEFF{"a":1}', { warnings }))).toEqual([{ a: 1 }]);
    expect(warnings).toEqual(['a byte order mark was removed']);
  });
});

describe('a JSON array', () => {
  test('comes back however the bytes are cut', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(record, { maxLength: 5 }),
        sizes,
        fc.constantFrom(undefined, 2),
        async (rows, s, indent) => {
          const text = ` ${JSON.stringify(rows, null, indent)} \n`;
          expect(values(await read(readJsonArray, text, { sizes: s }))).toEqual(JSON.parse(JSON.stringify(rows)));
        },
      ),
    );
  });

  test('an element that is no object, too long or badly encoded costs only itself', async () => {
    const bad = Buffer.concat([Buffer.from(',\n{"a":"'), Buffer.from([0xff]), Buffer.from('"}\n,{"a":3}]')]);
    const bytes = Buffer.concat([Buffer.from(`[{"a":1},7,{"a":oops},{"a":"${'x'.repeat(3000)}"},{"a":2}`), bad]);
    expect(values(await read(readJsonArray, bytes))).toEqual([
      { a: 1 },
      BAD_JSON,
      BAD_JSON,
      FIELD_TOO_LARGE,
      { a: 2 },
      BAD_ENCODING,
      { a: 3 },
    ]);
  });

  test('a file that is cut off loses its last row and says so', async () => {
    const warnings: string[] = [];
    expect(values(await read(readJsonArray, '[{"a":1},{"a":', { warnings }))).toEqual([{ a: 1 }, BAD_JSON]);
    expect(warnings).toEqual(['the JSON array is not closed; the file may be cut off']);
  });

  test('a file that is no array is refused with a way out', async () => {
    await expect(read(readJsonArray, '{"a":1}\n{"a":2}')).rejects.toThrow(
      /not a JSON array; if it holds one object a line/,
    );
    await expect(read(readJsonArray, ' ')).rejects.toThrow(/the file is empty/);
  });
});

describe('CSV', () => {
  const field = fc.string({ unit: fc.constantFrom('a', '"', ',', '\n', '\r', ' ', '好'), maxLength: 8 });
  const quoted = (s: string): string => `"${s.replaceAll('"', '""')}"`;

  test('comes back however the bytes are cut', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(field, field), { maxLength: 5 }),
        sizes,
        fc.constantFrom('\n', '\r\n', '\r'),
        async (rows, s, end) => {
          const text = ['x,y', ...rows.map((r) => r.map(quoted).join(','))].join(end);
          expect(values(await read(readCsv, text, { sizes: s }))).toEqual(rows.map(([x, y]) => ({ x, y })));
        },
      ),
      { numRuns: 300 },
    );
  });

  test('reads unquoted fields, missing and surplus ones, and blank lines', async () => {
    const text = 'x,y\na,b\n\nonly\n,\n1,2,3\nsay "hi",b\n';
    expect(values(await read(readCsv, text))).toEqual([
      { x: 'a', y: 'b' },
      { x: 'only' },
      { x: '', y: '' },
      { x: '1', y: '2' },
      { x: 'say "hi"', y: 'b' },
    ]);
  });

  test('GB18030 is decoded, and what is not GB18030 is BAD_ENCODING in its own row', async () => {
    const bytes = Buffer.concat([
      iconv.encode('问,答\n头痛,休息\n', 'gb18030'),
      Buffer.from([0xff, 0xff, 0x2c, 0x61, 0x0a]),
      iconv.encode('𠮷,好\n', 'gb18030'),
    ]);
    expect(values(await read(readCsv, bytes, { charset: 'gb18030', sizes: [1] }))).toEqual([
      { 问: '头痛', 答: '休息' },
      BAD_ENCODING,
      { 问: '𠮷', 答: '好' },
    ]);
  });

  test('a field and a record beyond the limits are FIELD_TOO_LARGE and cost only themselves', async () => {
    const text = `x,y\n"${'a'.repeat(5000)}",b\n${','.repeat(9000)}\nc,d`;
    expect(values(await read(readCsv, text))).toEqual([FIELD_TOO_LARGE, FIELD_TOO_LARGE, { x: 'c', y: 'd' }]);
  });

  test('a quote that is never closed is told', async () => {
    const warnings: string[] = [];
    expect(values(await read(readCsv, 'x\n"abc\ndef', { warnings }))).toEqual([{ x: 'abc\ndef' }]);
    expect(warnings).toEqual(['the quote of the last record is not closed; the file may be cut off']);
  });

  test('a header that cannot be read is refused', async () => {
    await expect(read(readCsv, '')).rejects.toThrow(/a CSV header line was expected/);
    await expect(read(readCsv, 'x,x\n1,2')).rejects.toThrow(/names a column twice/);
    await expect(read(readCsv, Buffer.from([0xff, 0x0a]))).rejects.toThrow(/header line cannot be read/);
  });

  test('a column called __proto__ is a column', async () => {
    const [row] = await read(readCsv, '__proto__,x\n1,2');
    expect(row).toHaveProperty('value');
    expect(Object.entries((row as { value: object }).value)).toEqual([
      ['__proto__', '1'],
      ['x', '2'],
    ]);
  });
});
