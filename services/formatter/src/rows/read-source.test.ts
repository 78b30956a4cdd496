import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { DuckDBInstance } from '@duckdb/node-api';
import { dataset } from '@medmesh/proto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { sourceOf, testLimits } from '../../test/format-fixture.ts';
import type { RawRow } from './raw-row.ts';
import { type OpenSource, openSource, type SourceFile } from './read-source.ts';
import { sourceFormat } from './source-format.ts';

const open = (source: SourceFile, wanted: readonly string[] = []): OpenSource =>
  openSource(source, {
    limits: testLimits,
    wanted: new Set(wanted),
    warn: () => undefined,
    onBytes: () => undefined,
    signal: AbortSignal.timeout(30_000),
  });

async function readAll(source: SourceFile, wanted?: readonly string[]): Promise<unknown[]> {
  const rows: RawRow[] = [];
  for await (const group of open(source, wanted).rows) rows.push(...group);
  return rows.map((r) => ('value' in r ? r.value : r.fault));
}

const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
const lines = '{"a":1}\n{"a":2}\n';

describe('a compressed source', () => {
  test.each([
    ['gzip', 'rows.jsonl.gz', gzipSync],
    ['zstd', 'rows.jsonl.zst', zstdCompressSync],
  ])('%s is read as a stream', async (_, name, compress) => {
    expect(await readAll(sourceOf({ name, bytes: compress(lines) }))).toEqual([{ a: 1 }, { a: 2 }]);
  });

  test.each([
    ['gzip', 'rows.jsonl.gz', gzipSync],
    ['zstd', 'rows.jsonl.zst', zstdCompressSync],
  ])('%s that is damaged or cut off is an error that says so', async (kind, name, compress) => {
    await expect(readAll(sourceOf({ name, bytes: lines }))).rejects.toThrow(`the file is not valid ${kind} data`);
    const whole = compress(lines.repeat(1000));
    await expect(readAll(sourceOf({ name, bytes: whole.subarray(0, whole.length - 5) }))).rejects.toThrow(
      `the file is not valid ${kind} data`,
    );
  });

  test('a bomb is read in bounded memory', async () => {
    // One line of 1 GiB: a thousand times its compressed size.
    const member = gzipSync(Buffer.alloc(2 ** 20, 'x'));
    const bomb = Buffer.concat(Array.from({ length: 1024 }, () => member));
    const before = process.memoryUsage.rss();
    let peak = before;
    const sampler = setInterval(() => {
      peak = Math.max(peak, process.memoryUsage.rss());
    }, 5);
    expect(await readAll(sourceOf({ name: 'rows.jsonl.gz', bytes: bomb }))).toEqual([
      dataset.DropReasonCode.FIELD_TOO_LARGE,
    ]);
    clearInterval(sampler);
    expect(peak - before).toBeLessThan(2 ** 28);
  });
});

describe('the digest of a source', () => {
  test('is over the stored bytes', async () => {
    const bytes = gzipSync(lines);
    const source = open(sourceOf({ name: 'rows.jsonl.gz', bytes }));
    await source.rows.next();
    await source.rows.return(undefined);
    expect(await source.digest()).toBe(sha256(bytes));
  });

  test('is over all of them when the rows are not read to the end', async () => {
    const bytes = Buffer.from(lines.repeat(5000));
    const source = open(sourceOf({ name: 'rows.jsonl', bytes }));
    await source.rows.next();
    await source.rows.return(undefined);
    expect(await source.digest()).toBe(sha256(bytes));
  });
});

describe('Parquet', () => {
  let dir: string;
  let bytes: Buffer;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'formatter-parquet-'));
    const path = join(dir, 'rows.parquet');
    const connection = await (await DuckDBInstance.create(':memory:')).connect();
    await connection.run(
      `COPY (SELECT 'q' || i AS "Question", CASE WHEN i % 2 = 0 THEN 'r' || i END AS "Response", i AS number, ` +
        `[{role: 'user', content: 'u' || i}] AS messages FROM range(5000) t(i)) TO '${path}' (FORMAT parquet, COMPRESSION zstd)`,
    );
    connection.closeSync();
    bytes = await readFile(path);
  });
  afterAll(() => rm(dir, { recursive: true, force: true }));

  test('is read in order, the wanted columns only', async () => {
    const rows = await readAll(sourceOf({ name: 'rows.parquet', bytes }), ['question', 'response']);
    expect(rows.length).toBe(5000);
    expect(rows.slice(0, 2)).toEqual([
      { Question: 'q0', Response: 'r0' },
      { Question: 'q1', Response: null },
    ]);
    expect(rows.at(-1)).toEqual({ Question: 'q4999', Response: null });
  });

  test('gives lists as JSON text and numbers as they are', async () => {
    const [first] = await readAll(sourceOf({ name: 'rows.parquet.zst', bytes: zstdCompressSync(bytes) }), [
      'messages',
      'number',
    ]);
    expect(first).toEqual({ number: 0n, messages: '[{"role":"user","content":"u0"}]' });
  });

  test('without any wanted column has rows that lack everything', async () => {
    expect((await readAll(sourceOf({ name: 'rows.parquet', bytes }), ['nothing'])).length).toBe(5000);
  });

  test('that is damaged is an error that quotes nothing', async () => {
    const damaged = Buffer.from(bytes);
    damaged.fill(0x41, 100, bytes.length - 100);
    await expect(readAll(sourceOf({ name: 'rows.parquet', bytes: damaged }), ['question'])).rejects.toThrow(
      /^the Parquet file cannot be read/,
    );
    await expect(readAll(sourceOf({ name: 'rows.parquet', bytes: 'no parquet' }), ['question'])).rejects.toThrow(
      /the Parquet file cannot be read/,
    );
  });
});

describe('the format of a source', () => {
  const format = (fileName: string, o: object = {}) =>
    sourceFormat(dataset.RowSource.fromPartial({ uri: 'sha256:0', fileName, ...o }), 'spec.sources[0]');

  test('follows the file name', () => {
    expect(format('a.jsonl')).toEqual({ rows: 'jsonl', compression: 'none', charset: 'utf-8' });
    expect(format('a.CSV.gz', { charset: 'GB18030' })).toEqual({
      rows: 'csv',
      compression: 'gzip',
      charset: 'gb18030',
    });
    expect(format('a.parquet').rows).toBe('parquet');
    expect(format('', { uri: 's3://bucket/folder/rows.json.zst' })).toEqual({
      rows: 'json',
      compression: 'zstd',
      charset: 'utf-8',
    });
  });

  test('is asked for where the name does not tell', () => {
    expect(() => format('rows.txt')).toThrow(/spec.sources\[0\].format: the file name does not tell/);
    expect(format('rows.txt', { format: dataset.RowFormat.JSONL }).rows).toBe('jsonl');
  });

  test('refuses an unknown encoding and codecs that are none', () => {
    expect(() => format('a.csv', { charset: 'klingon' })).toThrow(/spec.sources\[0\].charset/);
    expect(() => format('a.csv', { charset: 'base64' })).toThrow(/character encoding is not known/);
  });
});
