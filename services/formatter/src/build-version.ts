import { names, serializeDatasetMetadata } from '@medmesh/catalog';
import { Failure } from '@medmesh/errors';
import type { Manifest } from '@medmesh/objects';
import { dataset } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { traceId, withSpan } from '@medmesh/telemetry';
import { datasetEntry } from './datasets.ts';
import type { FormatterDeps } from './deps.ts';
import type { FormatProgress } from './pipeline/format-rows.ts';
import { specDigest } from './pipeline/resolve-spec.ts';
import { formatDepsOf, type PreparedFormat, prepareFormat } from './prepare-format.ts';
import { formatInThread } from './thread/format-in-thread.ts';

/** What a build reports while it works. */
export type ReportProgress = (progress: FormatProgress & { readonly totalBytes: number }) => void;

/** Where a version is to be built, and from what. */
export type BuildRequest = { readonly parent: string; readonly spec: dataset.DatasetVersionSpec | undefined };

/** Checks all of a build but its rows, so that most faults are told before anything is queued. */
export async function checkBuild(
  deps: FormatterDeps,
  request: BuildRequest,
  signal: AbortSignal,
): Promise<PreparedFormat> {
  await datasetEntry(deps, request.parent);
  return prepareFormat(deps, request.spec, signal);
}

/**
 * Builds a version: shards, then the manifest that names them, then the record, then the dataset's pointer to it. Before
 * the record there is nothing to be seen. The version's name follows from its content: a build that is repeated, also
 * after a crash, ends with the same version.
 */
export async function buildVersion(
  deps: FormatterDeps,
  request: BuildRequest,
  report: ReportProgress,
  signal: AbortSignal,
): Promise<dataset.DatasetVersion> {
  const createTime = new Date();
  const prepared = await checkBuild(deps, request, signal);
  const { spec, tokenizer, template, totalBytes } = prepared;
  const result = await withSpan(
    'format rows',
    { attributes: { 'medmesh.dataset.name': request.parent } },
    async (span) => {
      const formatted = await formatInThread(
        { ...formatDepsOf(prepared), sink: deps.store, onProgress: (p) => report({ ...p, totalBytes }) },
        spec,
        signal,
      );
      span.setAttributes({
        'medmesh.rows.read': formatted.stats.rowCount,
        'medmesh.rows.used': formatted.stats.usedRowCount,
      });
      return formatted;
    },
  );
  const manifest: Manifest = {
    kind: 'dataset',
    files: result.files,
    metadata: serializeDatasetMetadata({
      format: 1,
      tokenizerDigest: tokenizer.digest,
      templateDigest: template.digest,
      template: template.canonical,
      specDigest: specDigest(spec),
      inputDigests: result.inputDigests,
      train: result.train,
      validation: result.validation,
    }),
  };
  const manifestDigest = await deps.store.putManifest(manifest, { signal });
  const version = dataset.DatasetVersion.fromPartial({
    name: `${request.parent}/versions/v-${manifestDigest.slice('sha256:'.length).slice(0, 16)}`,
    spec,
    state: dataset.DatasetVersion_State.READY,
    stats: result.stats,
    manifestDigest,
    tokenizerDigest: tokenizer.digest,
    templateDigest: template.digest,
    createTime,
    traceId: traceId() ?? '',
  });
  const recorded = await record(deps, version);
  deps.log.info(
    {
      version: recorded.name,
      rows: result.stats.rowCount,
      used: result.stats.usedRowCount,
      tokens: result.stats.tokenCount,
    },
    'dataset version ready',
  );
  return recorded;
}

/** Does all that `buildVersion` does but keep the result. Rows that cannot be used are counted, and no fault. */
export async function validateVersion(
  deps: FormatterDeps,
  request: BuildRequest,
  report: ReportProgress,
  signal: AbortSignal,
): Promise<dataset.DataStats> {
  const prepared = await checkBuild(deps, request, signal);
  const { totalBytes } = prepared;
  const { stats } = await formatInThread(
    { ...formatDepsOf(prepared), onProgress: (p) => report({ ...p, totalBytes }) },
    prepared.spec,
    signal,
  );
  return stats;
}

async function record(deps: FormatterDeps, version: dataset.DatasetVersion): Promise<dataset.DatasetVersion> {
  const key = keyOf(version.name);
  const { project, dataset: id } = names.datasetVersion.parse(version.name);
  let recorded = version;
  try {
    await deps.catalog.datasetVersions.create(key, version);
  } catch (error) {
    if (!(error instanceof Failure && error.code === 'already_exists')) throw error;
    recorded = (await deps.catalog.datasetVersions.get(key))?.value ?? version;
  }
  await deps.catalog.datasets.modify(keyOf(names.dataset.format({ project, dataset: id })), (current) => ({
    ...current,
    latestVersion: recorded.name,
    updateTime: new Date(),
  }));
  return recorded;
}
