import { invalidField } from '@medmesh/errors';
import type { Materialized } from '@medmesh/objects';
import { isDigest } from '@medmesh/objects';
import type { dataset, model } from '@medmesh/proto';
import { type ResolvedTemplate, resolveTemplate, type TextTokenizer } from '@medmesh/text';
import type { FormatterConfig } from './config.ts';
import type { FormatterDeps } from './deps.ts';
import type { FormatLimits } from './pipeline/format-rows.ts';
import { resolveSpec } from './pipeline/resolve-spec.ts';
import type { RowLimits } from './rows/raw-row.ts';
import type { SourceFile } from './rows/read-source.ts';
import { sourceFormat } from './rows/source-format.ts';
import type { ThreadedFormatDeps } from './thread/format-in-thread.ts';

/** A spec with everything it names at hand. */
export type PreparedFormat = {
  readonly spec: dataset.DatasetVersionSpec;
  readonly model: model.Model;
  readonly tokenizer: TextTokenizer;
  readonly openTokenizer: (signal: AbortSignal) => Promise<Materialized>;
  readonly template: ResolvedTemplate;
  readonly sources: readonly SourceFile[];
  readonly evaluation: readonly SourceFile[];
  /** Bytes of all sources as they are stored. */
  readonly totalBytes: number;
  readonly limits: FormatLimits;
};

/** Checks a spec against what exists: its model, tokenizer, template and sources. Reads no rows. */
export async function prepareFormat(
  deps: FormatterDeps,
  given: dataset.DatasetVersionSpec | undefined,
  signal: AbortSignal,
): Promise<PreparedFormat> {
  const spec = resolveSpec(given);
  const { model: base, tokenizer, openFolder } = await deps.tokenizers.get(spec.model, signal);
  if (base.contextLength > 0 && spec.maxTokens > base.contextLength) {
    throw invalidField('spec.max_tokens', `is ${spec.maxTokens}; the model's context holds ${base.contextLength}`);
  }
  const template = resolveTemplate(spec.template, tokenizer);
  const sizes = await Promise.all(
    spec.sources.map((source, i) => sizeOf(deps, source, `spec.sources[${i}].uri`, signal)),
  );
  // Told now rather than in the middle of the build.
  await Promise.all(
    spec.evaluationSources.map((source, i) => sizeOf(deps, source, `spec.evaluation_sources[${i}].uri`, signal)),
  );
  return {
    spec,
    model: base,
    tokenizer,
    openTokenizer: openFolder,
    template,
    sources: spec.sources.map((source, i) => openableSource(deps, source, `spec.sources[${i}]`)),
    evaluation: spec.evaluationSources.map((source, i) =>
      openableSource(deps, source, `spec.evaluation_sources[${i}]`),
    ),
    totalBytes: sizes.reduce((sum, size) => sum + size, 0),
    limits: { ...rowLimitsOf(deps.config), maxRowCount: deps.config.MAX_ROW_COUNT },
  };
}

/** Bounds on what one row may take. */
export const rowLimitsOf = (config: FormatterConfig): RowLimits => ({
  maxFieldLength: config.MAX_FIELD_LENGTH,
  maxRowLength: config.MAX_ROW_LENGTH,
});

/** What `formatInThread` needs of it. */
export const formatDepsOf = (prepared: PreparedFormat): ThreadedFormatDeps => {
  const { sources, evaluation, openTokenizer, template, limits } = prepared;
  return { sources, evaluation, openTokenizer, template, limits };
};

async function sizeOf(
  deps: FormatterDeps,
  { uri }: dataset.RowSource,
  field: string,
  signal: AbortSignal,
): Promise<number> {
  if (!uri.startsWith('sha256:')) return deps.store.uriSize(uri, { signal });
  if (!isDigest(uri)) throw invalidField(field, 'is not sha256:<64 hex digits>');
  if (!(await deps.store.hasBlob(uri, { signal }))) throw invalidField(field, 'no file of this digest was uploaded');
  return deps.store.blobSize(uri, { signal });
}

/** A source that can be read. Faults of its format name `field`. */
export function openableSource(
  deps: Pick<FormatterDeps, 'store'>,
  source: dataset.RowSource,
  field: string,
): SourceFile {
  const format = sourceFormat(source, field);
  const { uri } = source;
  if (!uri.startsWith('sha256:')) return { format, open: (signal) => deps.store.readUri(uri, { signal }) };
  return { format, open: (signal) => deps.store.readBlob(uri, { signal }), path: deps.store.blobPath?.(uri) };
}
