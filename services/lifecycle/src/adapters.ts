import { manifestOf, names } from '@medmesh/catalog';
import { Failure, invalidField, notFound } from '@medmesh/errors';
import { lifecycle, type protobuf } from '@medmesh/proto';
import { checkEtag, type Entry, etagOf, keyOf } from '@medmesh/records';
import type { LifecycleDeps } from './deps.ts';
import { limits } from './limits.ts';
import { settleAdapter } from './settle-adapter.ts';

const AdapterState = lifecycle.Adapter_State;
const withEtag = ({ value, revision }: Entry<lifecycle.Adapter>): lifecycle.Adapter => ({
  ...value,
  etag: etagOf(revision),
});

/** A visible adapter's record. A pending one is settled first: by then its job has succeeded or it does not exist. */
async function adapterEntry(deps: LifecycleDeps, name: string): Promise<Entry<lifecycle.Adapter>> {
  names.adapter.parse(name);
  const entry = await deps.catalog.adapters.get(keyOf(name));
  const settled = entry === undefined ? undefined : await settleAdapter(deps, entry);
  if (settled === undefined) throw notFound(name);
  return settled;
}

export const getAdapter = async (
  deps: LifecycleDeps,
  request: lifecycle.GetAdapterRequest,
): Promise<lifecycle.Adapter> => withEtag(await adapterEntry(deps, request.name));

export async function listAdapters(
  deps: LifecycleDeps,
  request: lifecycle.ListAdaptersRequest,
): Promise<lifecycle.ListAdaptersResponse> {
  const { project } = names.project.parse(request.parent);
  const page = await deps.catalog.adapters.list(keyOf(`projects/${project}/adapters/`), {
    pageSize: request.pageSize,
    pageToken: request.pageToken,
  });
  const settled = await Promise.all(page.entries.map((entry) => settleAdapter(deps, entry)));
  return { adapters: settled.filter((entry) => entry !== undefined).map(withEtag), nextPageToken: page.nextPageToken };
}

async function change(
  deps: LifecycleDeps,
  name: string,
  etag: string,
  edit: (adapter: lifecycle.Adapter) => lifecycle.Adapter,
): Promise<lifecycle.Adapter> {
  const before = await adapterEntry(deps, name);
  if (etag !== '') checkEtag(etag, before.revision);
  return withEtag(
    await deps.catalog.adapters.modify(before.key, (adapter) => ({ ...edit(adapter), updateTime: new Date() })),
  );
}

export async function updateAdapter(
  deps: LifecycleDeps,
  request: lifecycle.UpdateAdapterRequest,
): Promise<lifecycle.Adapter> {
  const wanted = request.adapter;
  if (wanted === undefined) throw invalidField('adapter', 'is missing');
  if (Object.keys(wanted.labels).length > limits.maxLabels)
    throw invalidField('adapter.labels', `has more than ${limits.maxLabels} entries`);
  return change(deps, wanted.name, wanted.etag, (adapter) => ({
    ...adapter,
    displayName: wanted.displayName,
    labels: wanted.labels,
  }));
}

/** Forbids serving an adapter, for good. */
export const revokeAdapter = (
  deps: LifecycleDeps,
  request: lifecycle.RevokeAdapterRequest,
): Promise<lifecycle.Adapter> =>
  change(deps, request.name, request.etag, (adapter) => ({ ...adapter, state: AdapterState.REVOKED }));

/** Marks an adapter as superseded. A revoked one stays revoked. */
export const deprecateAdapter = (
  deps: LifecycleDeps,
  request: lifecycle.DeprecateAdapterRequest,
): Promise<lifecycle.Adapter> =>
  change(deps, request.name, request.etag, (adapter) => {
    if (adapter.state === AdapterState.REVOKED) {
      throw new Failure('failed_precondition', `${adapter.name} is REVOKED`, {
        reason: 'STATE_TRANSITION_NOT_ALLOWED',
      });
    }
    return { ...adapter, state: AdapterState.DEPRECATED };
  });

export async function deleteAdapter(
  deps: LifecycleDeps,
  request: lifecycle.DeleteAdapterRequest,
): Promise<protobuf.Empty> {
  const entry = await adapterEntry(deps, request.name);
  if (request.etag !== '') checkEtag(request.etag, entry.revision);
  await deps.catalog.adapters.delete(entry.key, entry.revision);
  return {};
}

const maxChunkBytes = 256 * 1024;

/** Streams one file of an adapter. */
export async function* downloadAdapterFile(
  deps: LifecycleDeps,
  request: lifecycle.DownloadAdapterFileRequest,
  signal: AbortSignal,
): AsyncGenerator<lifecycle.DownloadAdapterFileResponse> {
  const { value: adapter } = await adapterEntry(deps, request.name);
  const file = manifestOf('adapter', adapter.files).files.find(({ path }) => path === request.path);
  if (file === undefined) {
    throw new Failure(
      'not_found',
      `${adapter.name} has no such file; it has ${adapter.files.map(({ path }) => path).join(', ')}`,
      { reason: 'RESOURCE_NOT_FOUND' },
    );
  }
  for await (const piece of deps.store.readBlob(file.digest, { signal })) {
    for (let at = 0; at < piece.length; at += maxChunkBytes)
      yield { chunk: Buffer.from(piece.buffer, piece.byteOffset + at, Math.min(maxChunkBytes, piece.length - at)) };
  }
}

/** What an adapter was made of. */
export async function getLineage(
  deps: LifecycleDeps,
  request: lifecycle.GetLineageRequest,
): Promise<lifecycle.Lineage> {
  const { value: adapter } = await adapterEntry(deps, request.name);
  const models: string[] = [];
  // A chain of models is as long as it was made; the bound is against a record that names itself.
  for (let name = adapter.baseModel; name !== '' && models.length < 32 && !models.includes(name); ) {
    models.push(name);
    name = (await deps.catalog.models.get(keyOf(name)))?.value.origin?.sourceModel ?? '';
  }
  return {
    adapter: adapter.name,
    fineTuningJob: adapter.fineTuningJob,
    models,
    datasetVersions: adapter.datasetVersions,
    createTime: adapter.createTime,
  };
}
