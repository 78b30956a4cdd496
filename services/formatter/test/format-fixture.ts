import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { StoredBlob } from '@medmesh/objects';
import { dataset } from '@medmesh/proto';
import { loadTokenizer, resolveTemplate, type TextTokenizer } from '@medmesh/text';
import { writeTinyTokenizer } from '@medmesh/text/testing';
import { type FormatLimits, type FormatProgress, type FormatResult, formatRows } from '../src/pipeline/format-rows.ts';
import { resolveSpec } from '../src/pipeline/resolve-spec.ts';
import { decodeShard, type Shard } from '../src/pipeline/shard.ts';
import type { SourceFile } from '../src/rows/read-source.ts';
import { sourceFormat } from '../src/rows/source-format.ts';

export const testLimits: FormatLimits = { maxFieldLength: 2 ** 20, maxRowLength: 2 ** 24, maxRowCount: 1_000_000 };

/** The tiny tokenizer, loaded from a temporary folder that is gone again. */
export async function loadTinyTokenizer(): Promise<TextTokenizer> {
  const dir = await mkdtemp(join(tmpdir(), 'formatter-test-'));
  try {
    return await loadTokenizer(await writeTinyTokenizer(dir));
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

export type TestFile = { readonly name: string; readonly bytes: Uint8Array | string; readonly charset?: string };

export const sourceOf = (file: TestFile): SourceFile => ({
  format: sourceFormat(
    dataset.RowSource.fromPartial({ uri: 'sha256:0', fileName: file.name, charset: file.charset ?? '' }),
    'spec.sources[0]',
  ),
  async *open() {
    // Small chunks: what a reader does at their edges is part of every test.
    const bytes = Buffer.from(file.bytes as string);
    for (let at = 0; at < bytes.length; at += 1021) yield bytes.subarray(at, at + 1021);
  },
});

export type Formatted = FormatResult & { readonly shards: ReadonlyMap<string, Shard> };

/** Formats files with a tokenizer; the shards come back decoded. `keep: false` only validates. */
export async function formatFiles(
  tokenizer: TextTokenizer,
  files: readonly TestFile[],
  spec: Parameters<typeof dataset.DatasetVersionSpec.fromPartial>[0] = {},
  o: {
    readonly limits?: Partial<FormatLimits>;
    readonly evaluation?: readonly TestFile[];
    readonly keep?: boolean;
    readonly signal?: AbortSignal;
    readonly onProgress?: (p: FormatProgress) => void;
  } = {},
): Promise<Formatted> {
  const resolved = specOf(files, spec);
  const sink = memorySink();
  const result = await formatRows(
    {
      sources: files.map(sourceOf),
      evaluation: o.evaluation?.map(sourceOf),
      tokenizer,
      template: resolveTemplate(resolved.template, tokenizer),
      limits: { ...testLimits, ...o.limits },
      onProgress: o.onProgress,
      ...(o.keep === false ? {} : { sink }),
    },
    resolved,
    o.signal ?? AbortSignal.timeout(60_000),
  );
  return { ...result, shards: sink.shardsOf(result.files) };
}

/** A spec over these files with its defaults written out. */
export const specOf = (
  files: readonly Pick<TestFile, 'name' | 'charset'>[],
  spec: Parameters<typeof dataset.DatasetVersionSpec.fromPartial>[0] = {},
): dataset.DatasetVersionSpec =>
  resolveSpec(
    dataset.DatasetVersionSpec.fromPartial({
      ...spec,
      sources: files.map((f) => ({ uri: 'sha256:0', fileName: f.name, charset: f.charset ?? '' })),
      model: 'projects/p/models/m',
    }),
  );

/** Keeps shards in memory, under digests that are their numbers. */
export function memorySink() {
  const blobs: Uint8Array[] = [];
  return {
    async putBlob(bytes: Uint8Array): Promise<StoredBlob> {
      blobs.push(Uint8Array.from(bytes));
      return { digest: `sha256:${String(blobs.length).padStart(64, '0')}`, sizeBytes: bytes.length };
    },
    count: () => blobs.length,
    shardsOf: (files: FormatResult['files']): ReadonlyMap<string, Shard> =>
      new Map(files.map((f) => [f.path, decodeShard(blobs[Number(f.digest.slice('sha256:'.length)) - 1]!)])),
  };
}

/** The rows of the shards whose path begins so, as plain arrays. */
export function rowsOf(formatted: Formatted, split = ''): { index: number; ids: number[]; mask: number[] }[] {
  return [...formatted.shards]
    .filter(([path]) => path.startsWith(split))
    .flatMap(([, s]) =>
      [...s.rowIndex].map((index, i) => {
        const [start, end] = [Number(s.rowOffsets[i]), Number(s.rowOffsets[i + 1])];
        return { index, ids: [...s.inputIds.subarray(start, end)], mask: [...s.lossMask.subarray(start, end)] };
      }),
    );
}

/** Dropped rows by reason: `{ MISSING_FIELD: [3, 7] }`. */
export function droppedRows(stats: dataset.DataStats): Record<string, number[]> {
  return Object.fromEntries(
    stats.dropReasons.map((r) => [
      dataset.dropReasonCodeToJSON(r.code).replace('DROP_REASON_CODE_', ''),
      r.sampleRowIndices,
    ]),
  );
}

export const reasoningRow = (i: number): Record<string, string> => ({
  Question: `Question ${i}?`,
  Complex_CoT: `Thought ${i}.`,
  Response: `Answer ${i}.`,
});

export const jsonl = (rows: readonly unknown[]): string => rows.map((r) => `${JSON.stringify(r)}\n`).join('');
