import { names } from '@medmesh/catalog';
import { Failure, invalidField } from '@medmesh/errors';
import type { dataset } from '@medmesh/proto';
import { type BuildRequest, buildVersion, type ReportProgress } from './build-version.ts';
import type { FormatterDeps } from './deps.ts';
import { getVersion } from './read-versions.ts';

/** The build that a transformation comes to: the version's own spec with the request's changes. */
export async function transformedBuild(
  deps: FormatterDeps,
  request: dataset.TransformDatasetRequest,
): Promise<BuildRequest> {
  const version = await getVersion(deps, request.datasetVersion);
  const { spec } = version;
  if (spec === undefined) throw new Failure('data_loss', `${version.name} has no spec`, { reason: 'RECORD_CORRUPT' });
  const { nearDuplicateSimilarity, evaluationSources, dropIdentifiers, validationFraction, splitSeed } = request;
  const changes = { nearDuplicateSimilarity, dropIdentifiers, validationFraction, splitSeed };
  const given = Object.fromEntries(Object.entries(changes).filter(([, value]) => value !== undefined));
  if (Object.keys(given).length === 0 && evaluationSources.length === 0) {
    throw invalidField('dataset_version', 'nothing is to be changed; set one of the transformations');
  }
  const known = new Set(spec.evaluationSources.map(({ uri }) => uri));
  const added = evaluationSources.filter(({ uri }) => !known.has(uri));
  const { project, dataset: id } = names.datasetVersion.parse(version.name);
  return {
    parent: names.dataset.format({ project, dataset: id }),
    spec: { ...spec, ...given, evaluationSources: [...spec.evaluationSources, ...added] },
  };
}

/** Derives a new version of the same dataset. The one it comes from stays as it is. */
export async function transformDataset(
  deps: FormatterDeps,
  request: dataset.TransformDatasetRequest,
  report: ReportProgress,
  signal: AbortSignal,
): Promise<dataset.DatasetVersion> {
  return buildVersion(deps, await transformedBuild(deps, request), report, signal);
}
