import { manifestOf, names } from '@medmesh/catalog';
import { Failure, notFound } from '@medmesh/errors';
import { model, type protobuf } from '@medmesh/proto';
import { checkEtag, type Entry, etagOf, keyOf } from '@medmesh/records';
import type { QuantizerDeps } from './deps.ts';

const withEtag = ({ value, revision }: Entry<model.Model>): model.Model => ({ ...value, etag: etagOf(revision) });

async function modelEntry(deps: QuantizerDeps, name: string): Promise<Entry<model.Model>> {
  names.model.parse(name);
  const entry = await deps.catalog.models.get(keyOf(name));
  if (entry === undefined) throw notFound(name);
  return entry;
}

/** A model that can be used; Failure `failed_precondition` if it is still being prepared. */
export async function readyModel(deps: QuantizerDeps, name: string): Promise<model.Model> {
  const { value } = await modelEntry(deps, name);
  if (value.state !== model.Model_State.READY)
    throw new Failure('failed_precondition', `${name} is not ready`, { reason: 'MODEL_NOT_READY' });
  return value;
}

/** A model as it is now, also while it is being prepared. */
export const getModel = async (deps: QuantizerDeps, request: model.GetModelRequest): Promise<model.Model> =>
  withEtag(await modelEntry(deps, request.name));

/** A page of a project's models, by name. */
export async function listModels(
  deps: QuantizerDeps,
  request: model.ListModelsRequest,
): Promise<model.ListModelsResponse> {
  const { project } = names.project.parse(request.parent);
  const page = await deps.catalog.models.list(keyOf(`projects/${project}/models/`), {
    pageSize: request.pageSize,
    pageToken: request.pageToken,
  });
  return { models: page.entries.map(withEtag), nextPageToken: page.nextPageToken };
}

/** Deletes a model's record; its blobs may belong to others too and stay. */
export async function deleteModel(deps: QuantizerDeps, request: model.DeleteModelRequest): Promise<protobuf.Empty> {
  const entry = await modelEntry(deps, request.name);
  if (request.etag !== '') checkEtag(request.etag, entry.revision);
  await deps.catalog.models.delete(entry.key, entry.revision);
  return {};
}

const maxChunkBytes = 256 * 1024;

/** Streams one file of a model. */
export async function* downloadModelFile(
  deps: QuantizerDeps,
  request: model.DownloadModelFileRequest,
  signal: AbortSignal,
): AsyncGenerator<model.DownloadModelFileResponse> {
  const found = await readyModel(deps, request.name);
  const file = manifestOf('model', found.files).files.find(({ path }) => path === request.path);
  if (file === undefined) {
    throw new Failure(
      'not_found',
      `${found.name} has no such file; it has ${found.files.map(({ path }) => path).join(', ')}`,
      { reason: 'RESOURCE_NOT_FOUND' },
    );
  }
  for await (const piece of deps.store.readBlob(file.digest, { signal })) {
    for (let at = 0; at < piece.length; at += maxChunkBytes) {
      yield { chunk: Buffer.from(piece.buffer, piece.byteOffset + at, Math.min(maxChunkBytes, piece.length - at)) };
    }
  }
}
