import { invalidField } from '@medmesh/errors';
import type { model } from '@medmesh/proto';
import type { QuantizerDeps, Run } from './deps.ts';
import { readyModel } from './read-models.ts';

/** The model of an export, checked. */
export async function checkExport(deps: QuantizerDeps, request: model.ExportModelRequest): Promise<model.Model> {
  if (!/^(file:\/\/\/.|s3:\/\/[a-z0-9])/.test(request.destinationUri)) {
    throw invalidField('destination_uri', 'use file:///folder or s3://bucket/prefix');
  }
  return readyModel(deps, request.name);
}

/**
 * Copies a model's files to a folder or bucket, where transformers opens them. Each file appears complete or not at all, and config.json last: a folder
 * without it is an export that broke off, and the same export again completes it.
 */
export async function exportModel(
  deps: QuantizerDeps,
  request: model.ExportModelRequest,
  { report, signal }: Run,
): Promise<model.ExportModelResponse> {
  const found = await checkExport(deps, request);
  const base = request.destinationUri.replace(/\/+$/, '');
  const total = found.files.reduce((sum, file) => sum + file.sizeBytes, 0);
  const isLast = (file: model.ArtifactFile) => Number(file.path === 'config.json');
  let before = 0;
  for (const file of found.files.toSorted((a, b) => isLast(a) - isLast(b))) {
    const start = before;
    await deps.store.writeUri(`${base}/${file.path}`, deps.store.readBlob(file.digest, { signal }), {
      expectedDigest: file.digest,
      signal,
      onProgress: (bytes) => report('STORE', start + bytes, total),
    });
    before += file.sizeBytes;
  }
  return { destinationUri: base, files: found.files };
}
