import { invalidField } from '@medmesh/errors';
import { dataset } from '@medmesh/proto';

export type Compression = 'none' | 'gzip' | 'zstd';

/** How the bytes of a source are to be read. */
export type SourceFormat = {
  readonly rows: 'jsonl' | 'json' | 'csv' | 'parquet';
  readonly compression: Compression;
  /** The encoding's WHATWG name, e.g. `gb18030`. Without meaning for Parquet. */
  readonly charset: string;
};

const { RowFormat } = dataset;

const byEnding: Readonly<Record<string, SourceFormat['rows']>> = {
  jsonl: 'jsonl',
  ndjson: 'jsonl',
  json: 'json',
  csv: 'csv',
  parquet: 'parquet',
};

/** Decides the format of a source from what its spec says and how its file name ends. Faults name `field`. */
export function sourceFormat(source: dataset.RowSource, field: string): SourceFormat {
  const name = (source.fileName === '' ? source.uri.split('/').at(-1)! : source.fileName).toLowerCase();
  const compression: Compression = /\.(gz|gzip)$/.test(name) ? 'gzip' : /\.(zst|zstd)$/.test(name) ? 'zstd' : 'none';
  const ending =
    name
      .replace(/\.(gz|gzip|zst|zstd)$/, '')
      .split('.')
      .at(-1) ?? '';
  const rows = rowFormat(source.format) ?? byEnding[ending];
  if (rows === undefined) {
    throw invalidField(
      `${field}.format`,
      'the file name does not tell how its rows are encoded; set format, or file_name ending in .jsonl, .json, .csv or .parquet (and .gz or .zst)',
    );
  }
  return { rows, compression, charset: charsetName(source.charset, `${field}.charset`) };
}

function rowFormat(format: dataset.RowFormat): SourceFormat['rows'] | undefined {
  switch (format) {
    case RowFormat.JSONL:
      return 'jsonl';
    case RowFormat.JSON:
      return 'json';
    case RowFormat.CSV:
      return 'csv';
    case RowFormat.PARQUET:
      return 'parquet';
    default:
      return undefined;
  }
}

function charsetName(charset: string, field: string): string {
  if (charset === '') return 'utf-8';
  try {
    return new TextDecoder(charset).encoding;
  } catch {
    throw invalidField(
      field,
      'the character encoding is not known; use an IANA name such as utf-8, gb18030 or windows-1252',
    );
  }
}
