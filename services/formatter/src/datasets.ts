import { names } from '@medmesh/catalog';
import { Failure, type FieldViolation, notFound } from '@medmesh/errors';
import { dataset, type protobuf } from '@medmesh/proto';
import { checkEtag, checkResourceId, type Entry, etagOf, idempotent, keyOf } from '@medmesh/records';
import type { FormatterDeps } from './deps.ts';

const bounds = { displayName: 63, labels: 64, labelLength: 63 } as const;

const withEtag = ({ value, revision }: Entry<dataset.Dataset>): dataset.Dataset => ({
  ...value,
  etag: etagOf(revision),
});

/** The record of a dataset; Failure `not_found`. */
export async function datasetEntry(deps: FormatterDeps, name: string): Promise<Entry<dataset.Dataset>> {
  names.dataset.parse(name);
  const entry = await deps.catalog.datasets.get(keyOf(name));
  if (entry === undefined) throw notFound(name);
  return entry;
}

/** Creates a dataset; it has no rows until a version is built. */
export async function createDataset(
  deps: FormatterDeps,
  request: dataset.CreateDatasetRequest,
): Promise<dataset.Dataset> {
  const { project } = names.project.parse(request.parent);
  checkResourceId(request.datasetId, 'dataset_id');
  const { displayName = '', labels = {} } = request.dataset ?? {};
  checkBookkeeping(displayName, labels);
  const name = names.dataset.format({ project, dataset: request.datasetId });
  return idempotent(
    deps.records,
    {
      method: 'medmesh.dataset.v1.DatasetService/CreateDataset',
      requestId: request.requestId,
      body: dataset.CreateDatasetRequest.encode(request).finish(),
      resCodec: { encode: (v) => dataset.Dataset.encode(v).finish(), decode: (b) => dataset.Dataset.decode(b) },
    },
    async ({ takenOver }) => {
      const now = new Date();
      const record = dataset.Dataset.fromPartial({ name, displayName, labels, createTime: now, updateTime: now });
      try {
        return withEtag(await deps.catalog.datasets.create(keyOf(name), record));
      } catch (error) {
        // A process that died within this request may have created it.
        if (takenOver && error instanceof Failure && error.code === 'already_exists')
          return withEtag(await datasetEntry(deps, name));
        throw error;
      }
    },
  );
}

export const getDataset = async (deps: FormatterDeps, request: dataset.GetDatasetRequest): Promise<dataset.Dataset> =>
  withEtag(await datasetEntry(deps, request.name));

export async function listDatasets(
  deps: FormatterDeps,
  request: dataset.ListDatasetsRequest,
): Promise<dataset.ListDatasetsResponse> {
  const { project } = names.project.parse(request.parent);
  const { pageSize, pageToken } = request;
  const page = await deps.catalog.datasets.list(keyOf(`projects/${project}/datasets/`), { pageSize, pageToken });
  return { datasets: page.entries.map(withEtag), nextPageToken: page.nextPageToken };
}

/** Deletes a dataset and the records of its versions. Their blobs stay: other versions may hold the same. */
export async function deleteDataset(
  deps: FormatterDeps,
  request: dataset.DeleteDatasetRequest,
): Promise<protobuf.Empty> {
  const entry = await datasetEntry(deps, request.name);
  if (request.etag !== '') checkEtag(request.etag, entry.revision);
  for (const version of await allVersions(deps, request.name)) {
    await deps.catalog.datasetVersions.delete(version.key).catch((error: unknown) => {
      // A second deletion at the same time got there first.
      if (!(error instanceof Failure && error.code === 'not_found')) throw error;
    });
  }
  await deps.catalog.datasets.delete(entry.key, entry.revision);
  return {};
}

/** The records of all versions of a dataset. */
export async function allVersions(deps: FormatterDeps, datasetName: string): Promise<Entry<dataset.DatasetVersion>[]> {
  const entries: Entry<dataset.DatasetVersion>[] = [];
  for (let pageToken = ''; ; ) {
    const page = await deps.catalog.datasetVersions.list(keyOf(`${datasetName}/versions/`), {
      pageSize: 1000,
      pageToken,
    });
    entries.push(...page.entries);
    if (page.nextPageToken === '') return entries;
    pageToken = page.nextPageToken;
  }
}

function checkBookkeeping(displayName: string, labels: Readonly<Record<string, string>>): void {
  const faults: FieldViolation[] = [];
  if (displayName.length > bounds.displayName) {
    faults.push({
      field: 'dataset.display_name',
      description: `has ${displayName.length} characters; at most ${bounds.displayName} are allowed`,
    });
  }
  const entries = Object.entries(labels);
  if (entries.length > bounds.labels || entries.some((e) => e.some((text) => text.length > bounds.labelLength))) {
    faults.push({
      field: 'dataset.labels',
      description: `at most ${bounds.labels} labels of at most ${bounds.labelLength} characters are allowed`,
    });
  }
  if (faults.length === 0) return;
  throw new Failure('invalid_argument', faults.map((f) => `${f.field} ${f.description}`).join('; '), {
    reason: 'FIELD_INVALID',
    fields: faults,
  });
}
