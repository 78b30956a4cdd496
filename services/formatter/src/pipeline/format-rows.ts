import type { SplitFiles } from '@medmesh/catalog';
import { Failure } from '@medmesh/errors';
import type { ManifestFile } from '@medmesh/objects';
import { dataset } from '@medmesh/proto';
import {
  type EncodedSegments,
  encodeSegments,
  type ResolvedTemplate,
  type Row,
  type Segment,
  type TextTokenizer,
} from '@medmesh/text';
import { createGates } from '../gates/gates.ts';
import { readEvaluation } from '../gates/read-evaluation.ts';
import type { DropCode, RawRow, RowLimits } from '../rows/raw-row.ts';
import { openSource, type SourceFile } from '../rows/read-source.ts';
import { createStats, type Stats } from './data-stats.ts';
import { fitRow } from './fit-row.ts';
import { createRowMapper } from './map-row.ts';
import { isHeldOut, rowIdentity } from './row-identity.ts';
import { createShardWriter, type ShardSink, type ShardWriter } from './shard-writer.ts';

const { DropReasonCode, OverlongPolicy } = dataset;

export type FormatLimits = RowLimits & {
  /** Most rows of a version. A digest of each is kept, and indexes are 32-bit. */
  readonly maxRowCount: number;
};

export type FormatProgress = { readonly rowCount: number; readonly byteCount: number };

export type FormatDeps = {
  readonly sources: readonly SourceFile[];
  /** Evaluation sets that no row may overlap. */
  readonly evaluation?: readonly SourceFile[] | undefined;
  readonly tokenizer: TextTokenizer;
  readonly template: ResolvedTemplate;
  readonly limits: FormatLimits;
  /** Where shards go. Without it the rows are checked and counted, and nothing is kept. */
  readonly sink?: ShardSink | undefined;
  /** Called after each batch. */
  readonly onProgress?: ((progress: FormatProgress) => void) | undefined;
};

export type FormatResult = {
  readonly stats: dataset.DataStats;
  readonly inputDigests: string[];
  readonly files: ManifestFile[];
  readonly train: SplitFiles;
  readonly validation: SplitFiles;
};

/** Text of one batch, in UTF-16 code units, and its rows: a few milliseconds of this thread, and of the tokenizer's. */
const batchLength = 32 * 1024;
const batchRows = 256;

type Prepared = { readonly index: number; readonly heldOut: boolean; readonly segments: readonly Segment[] };

/**
 * Validates, renders, tokenises, masks and shards all rows of a resolved spec, in one pass and in order. Memory holds a
 * digest for each row, two batches, and one unfinished shard for each split.
 *
 * With a sink, rows that the spec does not allow to be left out make it fail, with all of them counted and the first
 * ones named by index: `invalid_argument` DATASET_INVALID. Without a sink they are only counted.
 */
export async function formatRows(
  deps: FormatDeps,
  spec: dataset.DatasetVersionSpec,
  signal: AbortSignal,
): Promise<FormatResult> {
  const { tokenizer, template } = deps;
  const stats = createStats(spec.maxTokens);
  const inputDigests: string[] = [];
  const writers = deps.sink === undefined ? undefined : createWriters(deps.sink, signal);
  const progress = { rowCount: 0, byteCount: 0 };
  const fatal = fatalCodes(spec);
  const mapper = createRowMapper(spec.columns, deps.limits);
  const evaluation = await readEvaluation(deps.evaluation ?? [], deps.limits, (w) => stats.warn(w), signal);
  const gates = createGates(spec, evaluation);

  const prepare = (raw: RawRow, index: number): Prepared | undefined => {
    const mapped = mapper.map(raw);
    if ('fault' in mapped) {
      stats.drop(index, mapped.fault);
      return undefined;
    }
    const identity = rowIdentity(mapped.row);
    const refused = gates.judge(mapped.row, identity);
    if (refused !== undefined) {
      stats.drop(index, refused);
      return undefined;
    }
    const heldOut = isHeldOut(identity, spec.splitSeed, spec.validationFraction);
    return { index, heldOut, segments: render(template, mapped.row, index) };
  };

  const settle = async (batch: readonly Prepared[], encoding: Promise<EncodedSegments[]>): Promise<void> => {
    const encoded = await encoding;
    for (const [i, row] of batch.entries()) {
      const fitted = fitRow(encoded[i]!, spec);
      if ('fault' in fitted) {
        stats.drop(row.index, fitted.fault);
        continue;
      }
      stats.use(fitted, row.heldOut);
      // A version that is going to fail needs no shards.
      if (writers === undefined || stats.dropped(fatal) > 0) continue;
      await (row.heldOut ? writers.validation : writers.train).add(row.index, fitted);
    }
    deps.onProgress?.({ ...progress });
  };

  // While the tokenizer works on one batch, off this thread, the next is read and rendered here.
  let working: Promise<void> = Promise.resolve();
  for (const [number, source] of deps.sources.entries()) {
    const opened = openSource(source, {
      limits: deps.limits,
      wanted: mapper.wanted,
      warn: (warning) => stats.warn(`source ${number}: ${warning}`),
      onBytes: (count) => {
        progress.byteCount += count;
      },
      signal,
    });
    try {
      for await (const raws of inBatches(namingSource(opened.rows, number))) {
        signal.throwIfAborted();
        const room = spec.rowLimit === 0 ? raws.length : Math.min(raws.length, spec.rowLimit - progress.rowCount);
        const batch = raws.slice(0, room).flatMap((raw, i) => prepare(raw, progress.rowCount + i) ?? []);
        progress.rowCount += room;
        stats.read(room);
        if (progress.rowCount > deps.limits.maxRowCount) throw tooManyRows(deps.limits.maxRowCount);
        const encoding = encodeSegments(
          tokenizer,
          batch.map((row) => row.segments),
        );
        // Awaited below; an error of the batch before must not leave this one unheard.
        encoding.catch(() => undefined);
        await working;
        working = settle(batch, encoding);
        working.catch(() => undefined);
        if (spec.rowLimit !== 0 && progress.rowCount >= spec.rowLimit) break;
      }
    } catch (e) {
      await working.catch(() => undefined);
      await opened.close();
      throw e;
    }
    inputDigests.push(await opened.digest());
  }
  await working;

  if (mapper.shapeMissing) throw shapeUnknown();
  if (writers !== undefined) refuseUnusable(stats, fatal);
  const [train, validation] = await Promise.all([finish(writers?.train), finish(writers?.validation)]);
  return {
    stats: stats.summary(),
    inputDigests,
    files: [...train.files, ...validation.files],
    train: train.split,
    validation: validation.split,
  };
}

const createWriters = (sink: ShardSink, signal: AbortSignal): { train: ShardWriter; validation: ShardWriter } => ({
  train: createShardWriter(sink, 'train', signal),
  validation: createShardWriter(sink, 'validation', signal),
});

async function finish(writer: ShardWriter | undefined): Promise<{ files: ManifestFile[]; split: SplitFiles }> {
  const nothing = { paths: [], rowCount: 0, tokenCount: 0, trainableTokenCount: 0, maxRowTokens: 0 };
  return writer === undefined ? { files: [], split: nothing } : writer.finish();
}

/** A template that cannot hold a row is a fault of the spec, not of the row; the row's index helps to find it. */
function render(template: ResolvedTemplate, row: Row, index: number): Segment[] {
  try {
    return template.renderExample(row);
  } catch (e) {
    if (!(e instanceof Failure)) throw e;
    throw new Failure(e.code, `row ${index}: ${e.message}`, { reason: e.reason, fields: e.fields, cause: e });
  }
}

/** Gathers or cuts what a reader hands out into batches of a bounded amount of text. */
async function* inBatches(groups: AsyncIterable<readonly RawRow[]>): AsyncGenerator<RawRow[]> {
  let batch: RawRow[] = [];
  let length = 0;
  for await (const rows of groups) {
    for (const row of rows) {
      batch.push(row);
      length += textLength(row);
      if (length < batchLength && batch.length < batchRows) continue;
      yield batch;
      batch = [];
      length = 0;
    }
  }
  if (batch.length > 0) yield batch;
}

/** An estimate: a list of messages counts by its number. */
function textLength(row: RawRow): number {
  if ('fault' in row) return 0;
  let length = 0;
  for (const value of Object.values(row.value)) {
    if (typeof value === 'string') length += value.length;
    else if (Array.isArray(value)) length += 512 * value.length;
  }
  return length;
}

async function* namingSource<T>(values: AsyncIterable<T>, number: number): AsyncGenerator<T> {
  try {
    yield* values;
  } catch (e) {
    if (!(e instanceof Failure) || e.reason !== 'SOURCE_INVALID') throw e;
    throw new Failure(e.code, `source ${number}: ${e.message}`, {
      reason: e.reason,
      metadata: { source: String(number) },
      cause: e,
    });
  }
}

/** Reasons that make a build fail under this spec. */
function fatalCodes(spec: dataset.DatasetVersionSpec): DropCode[] {
  const invalid: DropCode[] = [
    DropReasonCode.MISSING_FIELD,
    DropReasonCode.EMPTY_FIELD,
    DropReasonCode.NOT_TEXT,
    DropReasonCode.NO_TRAINABLE_TOKENS,
    DropReasonCode.BAD_ENCODING,
    DropReasonCode.BAD_JSON,
    DropReasonCode.FIELD_TOO_LARGE,
  ];
  return [
    ...(spec.dropInvalid ? [] : invalid),
    ...(spec.overlong === OverlongPolicy.ERROR ? [DropReasonCode.TOO_LONG] : []),
  ];
}

function refuseUnusable(stats: Stats, fatal: readonly DropCode[]): void {
  const { rowCount, usedRowCount, dropReasons } = stats.summary();
  const faults = dropReasons.filter((r) => fatal.includes(r.code));
  if (faults.length > 0) {
    const count = faults.reduce((n, r) => n + r.rowCount, 0);
    const list = faults.map((r) => {
      const shown = r.sampleRowIndices.slice(0, 10).join(', ');
      return `${codeName(r.code)} in ${r.rowCount} (row ${shown}${r.rowCount > 10 ? ', …' : ''})`;
    });
    const tooLong = faults.some((r) => r.code === DropReasonCode.TOO_LONG);
    const others = faults.some((r) => r.code !== DropReasonCode.TOO_LONG);
    const ways = [
      ...(others ? ['set drop_invalid to leave such rows out'] : []),
      ...(tooLong ? ['raise max_tokens or set overlong to DROP or TRUNCATE'] : []),
    ];
    throw new Failure(
      'invalid_argument',
      `${count} of ${rowCount} rows cannot be used: ${list.join('; ')}. Correct them, or ${ways.join(', and ')}`,
      {
        reason: 'DATASET_INVALID',
        metadata: Object.fromEntries(faults.map((r) => [codeName(r.code), r.sampleRowIndices.join(',')])),
      },
    );
  }
  if (usedRowCount === 0) {
    throw new Failure('failed_precondition', `none of the ${rowCount} rows can be used`, {
      reason: 'NO_ROWS',
      metadata: Object.fromEntries(dropReasons.map((r) => [codeName(r.code), String(r.rowCount)])),
    });
  }
}

/** `MISSING_FIELD` of `DROP_REASON_CODE_MISSING_FIELD`. */
const codeName = (code: DropCode): string => dataset.dropReasonCodeToJSON(code).replace('DROP_REASON_CODE_', '');

const tooManyRows = (limit: number): Failure =>
  new Failure(
    'failed_precondition',
    `the sources hold more than ${limit} rows; set row_limit or make several datasets`,
    {
      reason: 'TOO_MANY_ROWS',
    },
  );

const shapeUnknown = (): Failure =>
  new Failure(
    'invalid_argument',
    'no row has the columns of a known shape (Question, Complex_CoT, Response; instruction, output; messages; conversations); set columns to say which column carries what',
    { reason: 'COLUMNS_UNKNOWN', fields: [{ field: 'spec.columns', description: 'say which column carries what' }] },
  );
