import { names } from '@medmesh/catalog';
import { Failure, notFound } from '@medmesh/errors';
import type { dataset } from '@medmesh/proto';
import { checkPageSize, keyOf } from '@medmesh/records';
import { allVersions, datasetEntry } from './datasets.ts';
import type { FormatterDeps } from './deps.ts';

export async function getVersion(deps: FormatterDeps, name: string): Promise<dataset.DatasetVersion> {
  names.datasetVersion.parse(name);
  const entry = await deps.catalog.datasetVersions.get(keyOf(name));
  if (entry === undefined) throw notFound(name);
  return entry.value;
}

/** A dataset's versions, newest first. Records are sorted by key, so the order by time is made here. */
export async function listVersions(
  deps: FormatterDeps,
  request: dataset.ListDatasetVersionsRequest,
): Promise<dataset.ListDatasetVersionsResponse> {
  await datasetEntry(deps, request.parent);
  const pageSize = checkPageSize(request.pageSize);
  const versions = (await allVersions(deps, request.parent)).map((entry) => entry.value).sort(newestFirst);
  const after = request.pageToken === '' ? undefined : readToken(request.parent, request.pageToken);
  const start = after === undefined ? 0 : versions.findIndex((v) => newestFirst(v, after) > 0);
  const page = start < 0 ? [] : versions.slice(start, start + pageSize);
  const more = start >= 0 && start + pageSize < versions.length;
  return { datasetVersions: page, nextPageToken: more ? makeToken(request.parent, page.at(-1)!) : '' };
}

type Place = Pick<dataset.DatasetVersion, 'createTime' | 'name'>;

function newestFirst(a: Place, b: Place): number {
  const byTime = (b.createTime?.getTime() ?? 0) - (a.createTime?.getTime() ?? 0);
  return byTime === 0 ? (a.name < b.name ? -1 : Number(a.name > b.name)) : byTime;
}

/** The last version of a page: the next page begins behind it, also when it is gone by then. */
const makeToken = (parent: string, { name, createTime }: Place): string =>
  Buffer.from(JSON.stringify([parent, name, createTime?.getTime() ?? 0])).toString('base64url');

function readToken(parent: string, token: string): Place {
  try {
    const [listed, name, time] = JSON.parse(Buffer.from(token, 'base64url').toString()) as unknown[];
    if (listed === parent && typeof name === 'string' && typeof time === 'number')
      return { name, createTime: new Date(time) };
  } catch {
    // Not a token of ours; said below.
  }
  throw new Failure('invalid_argument', 'page_token: not a token of this list; begin again without one', {
    reason: 'PAGE_TOKEN_MISMATCH',
    fields: [{ field: 'page_token', description: 'is not a token of this list' }],
  });
}
