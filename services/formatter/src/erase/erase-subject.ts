import { names } from '@medmesh/catalog';
import { Failure, invalidField, toFailure } from '@medmesh/errors';
import type { dataset } from '@medmesh/proto';
import { type Entry, eachEntry, keyOf } from '@medmesh/records';
import { buildVersion, type ReportProgress } from '../build-version.ts';
import type { FormatterDeps } from '../deps.ts';
import { rowLimitsOf } from '../prepare-format.ts';
import { rewriteSource } from './rewrite-source.ts';
import { trainedOn } from './trained-on.ts';

type Version = Entry<dataset.DatasetVersion>;

/** A digest, not a name or a number that tells who it is. */
export function checkErase(request: dataset.EraseSubjectRequest): void {
  names.project.parse(request.parent);
  if (/^[\w:+/=.-]{16,128}$/.test(request.subjectDigest)) return;
  throw invalidField(
    'subject_digest',
    'must be a keyed digest of 16 to 128 letters, digits and :_+/=.-, as the rows carry it',
  );
}

/**
 * Removes a subject's rows: sources are stored again without them, versions that used such sources are built again, what
 * was trained on the old ones is listed, and only then the old records and blobs are deleted. So a run that is broken off
 * before that, and done again, finds all that the first one found.
 */
export async function eraseSubject(
  deps: FormatterDeps,
  request: dataset.EraseSubjectRequest,
  report: ReportProgress,
  signal: AbortSignal,
): Promise<dataset.EraseSubjectResponse> {
  checkErase(request);
  const { project } = names.project.parse(request.parent);
  const versions: Version[] = await Array.fromAsync(
    eachEntry(deps.catalog.datasetVersions, keyOf(`projects/${project}/datasets/`)),
  );
  const sources = await rewriteSources(deps, versions, request.subjectDigest, signal);
  const affected = versions
    .filter(({ value }) => value.spec?.sources.some(({ uri }) => sources.replacements.has(uri)))
    // The newest last, so that the dataset's pointer to its latest version ends where it was.
    .sort((a, b) => (a.value.createTime?.getTime() ?? 0) - (b.value.createTime?.getTime() ?? 0));
  const erased: dataset.ErasedVersion[] = [];
  for (const { value } of affected)
    erased.push(await replaceVersion(deps, value, sources.replacements, report, signal));
  const trained = await trainedOn(deps.catalog, project, new Set(affected.map(({ value }) => value.name)));
  await deleteOld(deps, affected, erased, [...sources.replacements.keys()], signal);
  deps.log.info(
    { versions: erased.length, rows: sources.rowCount, adapters: trained.adapters.length },
    'a subject was erased',
  );
  return {
    adapters: trained.adapters,
    versions: erased,
    fineTuningJobs: trained.jobs,
    models: trained.models,
    remainingSources: [...sources.replacements.keys()].filter((uri) => !uri.startsWith('sha256:')),
    erasedRowCount: sources.rowCount,
  };
}

/** Rewrites every source that a version says carries subjects. By URI: a source of several versions is rewritten once. */
async function rewriteSources(deps: FormatterDeps, versions: readonly Version[], subject: string, signal: AbortSignal) {
  const columns = new Map<string, { source: dataset.RowSource; names: Set<string> }>();
  for (const { value } of versions) {
    const column = value.spec?.columns?.subject ?? '';
    if (column === '') continue;
    for (const source of value.spec!.sources) {
      const known = columns.get(source.uri) ?? { source, names: new Set() };
      known.names.add(column.toLowerCase());
      columns.set(source.uri, known);
    }
  }
  const replacements = new Map<string, dataset.RowSource>();
  let rowCount = 0;
  for (const [uri, { source, names: columnNames }] of columns) {
    const rewritten = await rewriteSource(deps, source, columnNames, subject, rowLimitsOf(deps.config), signal);
    rowCount += rewritten.rowCount;
    if (rewritten.replacement !== undefined) replacements.set(uri, rewritten.replacement);
  }
  return { replacements, rowCount };
}

/** Builds a version again over the sources without the subject. Where that cannot be, the version goes without one in its place. */
async function replaceVersion(
  deps: FormatterDeps,
  version: dataset.DatasetVersion,
  replacements: ReadonlyMap<string, dataset.RowSource>,
  report: ReportProgress,
  signal: AbortSignal,
): Promise<dataset.ErasedVersion> {
  const { project, dataset: id } = names.datasetVersion.parse(version.name);
  const spec = {
    ...version.spec!,
    sources: version.spec!.sources.map((source) => replacements.get(source.uri) ?? source),
  };
  try {
    const built = await buildVersion(
      deps,
      { parent: names.dataset.format({ project, dataset: id }), spec },
      report,
      signal,
    );
    return { name: version.name, replacement: built.name, errorMessage: '' };
  } catch (error) {
    signal.throwIfAborted();
    const failure = toFailure(error);
    if (failure.retryable || failure.code === 'internal') throw failure;
    return { name: version.name, replacement: '', errorMessage: failure.message };
  }
}

/** Deletes records first: what nobody can find is deleted next. Blobs that another version still names stay. */
async function deleteOld(
  deps: FormatterDeps,
  affected: readonly Version[],
  erased: readonly dataset.ErasedVersion[],
  uris: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const doomed = new Set(uris.filter((uri) => uri.startsWith('sha256:')));
  for (const { value } of affected) for (const digest of await blobsOf(deps, value, signal)) doomed.add(digest);
  for (const { key, value } of affected) {
    await deps.catalog.datasetVersions.delete(key).catch(ignoreMissing);
    const { project, dataset: id } = names.datasetVersion.parse(value.name);
    const replacement = erased.find(({ name }) => name === value.name)?.replacement ?? '';
    await deps.catalog.datasets
      .modify(keyOf(names.dataset.format({ project, dataset: id })), (current) =>
        current.latestVersion === value.name ? { ...current, latestVersion: replacement } : undefined,
      )
      .catch(ignoreMissing);
  }
  for await (const { value } of eachEntry(deps.catalog.datasetVersions)) {
    for (const { uri } of value.spec?.sources ?? []) doomed.delete(uri);
    for (const digest of await blobsOf(deps, value, signal)) doomed.delete(digest);
  }
  for (const digest of doomed) await deps.store.deleteBlob(digest, { signal });
}

/** A version's manifest and shards. */
async function blobsOf(deps: FormatterDeps, version: dataset.DatasetVersion, signal: AbortSignal): Promise<string[]> {
  if (version.manifestDigest === '') return [];
  try {
    const { files } = await deps.store.getManifest(version.manifestDigest, { signal });
    return [version.manifestDigest, ...files.map((file) => file.digest)];
  } catch (error) {
    if (error instanceof Failure && error.code === 'not_found') return [version.manifestDigest];
    throw error;
  }
}

function ignoreMissing(error: unknown): void {
  if (!(error instanceof Failure && error.code === 'not_found')) throw error;
}
