import { parseDatasetMetadata } from '@medmesh/catalog';
import { Failure, invalidField } from '@medmesh/errors';
import { dataset } from '@medmesh/proto';
import { encodeSegments, type SegmentKind, type TextTokenizer, textOf } from '@medmesh/text';
import { datasetEntry } from './datasets.ts';
import type { FormatterDeps } from './deps.ts';
import { createGates } from './gates/gates.ts';
import { readEvaluation } from './gates/read-evaluation.ts';
import { fitRow } from './pipeline/fit-row.ts';
import { createRowMapper, type MappedRow } from './pipeline/map-row.ts';
import { rowIdentity } from './pipeline/row-identity.ts';
import { decodeShard } from './pipeline/shard.ts';
import { type PreparedFormat, prepareFormat } from './prepare-format.ts';
import { getVersion } from './read-versions.ts';
import { openSource } from './rows/read-source.ts';

const { SpanKind } = dataset;

const bounds = { rows: 100, tokens: 2 ** 18 } as const;

const spanKinds: Readonly<Record<SegmentKind, dataset.SpanKind>> = {
  prompt: SpanKind.PROMPT,
  reasoning: SpanKind.REASONING,
  response: SpanKind.RESPONSE,
  markup: SpanKind.MARKUP,
  eos: SpanKind.EOS,
};

/** Shows chosen rows as they are, or would be, trained on. The one place where row text leaves the service. */
export async function previewExamples(
  deps: FormatterDeps,
  request: dataset.PreviewExamplesRequest,
  signal: AbortSignal,
): Promise<dataset.PreviewExamplesResponse> {
  await datasetEntry(deps, request.parent);
  const indices = request.rowIndices;
  if (indices.length > bounds.rows)
    throw invalidField('row_indices', `has ${indices.length} rows; ask for at most ${bounds.rows}`);
  if (indices.some((i) => !Number.isSafeInteger(i) || i < 0))
    throw invalidField('row_indices', 'an index is 0 or more');
  if ((request.datasetVersion === '') === (request.spec === undefined)) {
    throw invalidField('spec', 'give either spec or dataset_version');
  }
  if (request.datasetVersion !== '' && !request.datasetVersion.startsWith(`${request.parent}/versions/`)) {
    throw invalidField('dataset_version', `is not a version of ${request.parent}`);
  }
  const examples =
    request.datasetVersion === ''
      ? await previewSpec(await prepareFormat(deps, request.spec, signal), indices, signal)
      : await previewVersion(deps, request.datasetVersion, indices, signal);
  if (examples.reduce((n, e) => n + e.tokens.length, 0) > bounds.tokens) {
    throw invalidField('row_indices', `these rows have more than ${bounds.tokens} tokens; ask for fewer`);
  }
  return { examples };
}

/** Reads the sources up to the last row that was asked for. */
async function previewSpec(
  prepared: PreparedFormat,
  indices: readonly number[],
  signal: AbortSignal,
): Promise<dataset.PreviewExample[]> {
  const wanted = new Set(indices.length === 0 ? [0, 1, 2] : indices);
  const last = Math.max(...wanted);
  const found = new Map<number, MappedRow>();
  const mapper = createRowMapper(prepared.spec.columns, prepared.limits);
  const gates = createGates(
    prepared.spec,
    await readEvaluation(prepared.evaluation, prepared.limits, () => undefined, signal),
  );
  let index = 0;
  for (const source of prepared.sources) {
    if (index > last) break;
    const { limits } = prepared;
    const opened = openSource(source, {
      limits,
      wanted: mapper.wanted,
      warn: () => undefined,
      onBytes: () => undefined,
      signal,
    });
    try {
      for await (const raws of opened.rows) {
        for (const raw of raws) {
          const mapped = mapper.map(raw);
          const refused = 'row' in mapped ? gates.judge(mapped.row, rowIdentity(mapped.row)) : undefined;
          if (wanted.has(index)) found.set(index, refused === undefined ? mapped : { fault: refused });
          index += 1;
        }
        if (index > last) break;
      }
    } finally {
      await opened.close();
    }
  }
  const missing = [...wanted].filter((i) => !found.has(i));
  if (missing.length > 0 && indices.length > 0) throw rowsMissing(missing, `the sources have ${index} rows`);
  const present = [...wanted].filter((i) => found.has(i));
  return Promise.all(present.map((i) => previewRow(prepared, i, found.get(i)!)));
}

async function previewRow(prepared: PreparedFormat, index: number, mapped: MappedRow): Promise<dataset.PreviewExample> {
  const rowIndex = index;
  if ('fault' in mapped) return dataset.PreviewExample.fromPartial({ rowIndex, dropReason: mapped.fault });
  const segments = prepared.template.renderExample(mapped.row);
  const [encoded] = await encodeSegments(prepared.tokenizer, [segments]);
  const fitted = fitRow(encoded!, prepared.spec);
  const text = textOf(segments);
  if ('fault' in fitted) return dataset.PreviewExample.fromPartial({ rowIndex, text, dropReason: fitted.fault });
  const tokens = fitted.spans.flatMap((span) =>
    Array.from(fitted.ids.subarray(span.start, span.end), (id, i) => ({
      id,
      text: prepared.tokenizer.decode([id]),
      span: spanKinds[span.kind],
      trained: fitted.mask[span.start + i] === 1,
    })),
  );
  return dataset.PreviewExample.fromPartial({ rowIndex, text, tokens });
}

/** Reads shards, in order, until all rows are found. Without indices: the first three rows of the version. */
async function previewVersion(
  deps: FormatterDeps,
  name: string,
  indices: readonly number[],
  signal: AbortSignal,
): Promise<dataset.PreviewExample[]> {
  const version = await getVersion(deps, name);
  const manifest = await deps.store.getManifest(version.manifestDigest, { signal });
  const { train, validation } = parseDatasetMetadata(manifest.metadata);
  const { tokenizer } = await deps.tokenizers.get(version.spec?.model ?? '', signal);
  if (tokenizer.digest !== version.tokenizerDigest) {
    throw new Failure(
      'failed_precondition',
      `${version.spec?.model} has another tokenizer than ${name} was built with`,
      {
        reason: 'TOKENIZER_CHANGED',
      },
    );
  }
  const found = new Map<number, dataset.PreviewExample>();
  const complete = (): boolean => (indices.length === 0 ? found.size >= 3 : indices.every((i) => found.has(i)));
  for (const path of [...train.paths, ...validation.paths]) {
    if (complete()) break;
    const file = manifest.files.find((f) => f.path === path);
    if (file === undefined)
      throw new Failure('data_loss', `${name} names a shard it does not have`, { reason: 'MANIFEST_INVALID' });
    const pieces: Uint8Array[] = [];
    for await (const piece of deps.store.readBlob(file.digest, { signal })) pieces.push(piece);
    const shard = decodeShard(Buffer.concat(pieces));
    const asked = (row: number): boolean => (indices.length === 0 ? found.size < 3 : indices.includes(row));
    for (const [i, row] of shard.rowIndex.entries()) {
      if (!asked(row)) continue;
      const [start, end] = [Number(shard.rowOffsets[i]), Number(shard.rowOffsets[i + 1])];
      found.set(
        row,
        storedExample(tokenizer, row, shard.inputIds.subarray(start, end), shard.lossMask.subarray(start, end)),
      );
    }
  }
  const missing = indices.filter((i) => !found.has(i));
  if (missing.length > 0) throw rowsMissing(missing, `${name} left them out, or never had them`);
  return indices.length === 0 ? [...found.values()] : indices.map((i) => found.get(i)!);
}

/**
 * A row of a shard. Shards hold tokens and masks, not what the tokens are part of; that is read off the think tags and the
 * mask, which is exact unless only the response was trained on.
 */
function storedExample(
  tokenizer: TextTokenizer,
  rowIndex: number,
  ids: Uint32Array,
  mask: Uint8Array,
): dataset.PreviewExample {
  const first = mask.indexOf(1);
  const close = tokenizer.thinkEndId === undefined ? -1 : ids.lastIndexOf(tokenizer.thinkEndId);
  const kindOf = (i: number): dataset.SpanKind => {
    if (i < first) return SpanKind.PROMPT;
    if (i === ids.length - 1 && tokenizer.stopTokenIds.includes(ids[i]!)) return SpanKind.EOS;
    if (ids[i] === tokenizer.thinkEndId || ids[i] === tokenizer.thinkStartId) return SpanKind.MARKUP;
    return i < close ? SpanKind.REASONING : SpanKind.RESPONSE;
  };
  const tokens = Array.from(ids, (id, i) => ({
    id,
    text: tokenizer.decode([id]),
    span: kindOf(i),
    trained: mask[i] === 1,
  }));
  return dataset.PreviewExample.fromPartial({ rowIndex, text: tokenizer.decode(ids), tokens });
}

const rowsMissing = (rows: readonly number[], why: string): Failure =>
  new Failure('not_found', `no row ${rows.slice(0, 10).join(', ')}: ${why}`, { reason: 'ROW_NOT_FOUND' });
