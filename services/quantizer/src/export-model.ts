import { invalidField } from '@medmesh/errors';
import { exportFiles } from '@medmesh/objects';
import { type lifecycle, model } from '@medmesh/proto';
import type { QuantizerDeps, Run } from './deps.ts';
import { checkMerge } from './merge-adapter.ts';
import { readyModel } from './read-models.ts';

/** Whether the export is one GGUF file, not the model's own files. */
export const isGguf = (format: model.ExportFormat): boolean =>
  format !== model.ExportFormat.UNSPECIFIED && format !== model.ExportFormat.HUGGING_FACE;

/** The model of an export, and the adapter that is added to it, checked to belong together. */
export async function checkExport(
  deps: QuantizerDeps,
  request: model.ExportModelRequest,
): Promise<{ found: model.Model; adapter: lifecycle.Adapter | undefined }> {
  if (!/^(file:\/\/\/.|s3:\/\/[a-z0-9])/.test(request.destinationUri)) {
    throw invalidField('destination_uri', 'use file:///folder or s3://bucket/prefix');
  }
  if (request.format === model.ExportFormat.UNRECOGNIZED) throw invalidField('format', 'is not known to this server');
  const found = await readyModel(deps, request.name);
  if (request.adapter === '') return { found, adapter: undefined };
  if (!isGguf(request.format)) {
    throw invalidField('adapter', 'only GGUF exports take an adapter; MergeAdapter makes a model with its files');
  }
  const merge = model.MergeAdapterRequest.fromPartial({ adapter: request.adapter, baseModel: request.name });
  return { found, adapter: (await checkMerge(deps, merge)).adapter };
}

/** A folder's URI without slashes at its end. */
export const folderUri = (request: model.ExportModelRequest): string => request.destinationUri.replace(/\/+$/, '');

/**
 * Copies a model's files to a folder or bucket, where transformers opens them. Each file appears complete or not at all, and config.json last: a folder
 * without it is an export whose process died, and the same export again completes it. One that fails or is cancelled removes what it wrote.
 */
export async function exportModel(
  deps: QuantizerDeps,
  request: model.ExportModelRequest,
  { report, signal }: Run,
): Promise<model.ExportModelResponse> {
  const { found } = await checkExport(deps, request);
  const base = folderUri(request);
  const total = found.files.reduce((sum, file) => sum + file.sizeBytes, 0);
  const isLast = (file: model.ArtifactFile) => Number(file.path === 'config.json');
  await exportFiles(
    deps.store,
    found.files.toSorted((a, b) => isLast(a) - isLast(b)),
    base,
    { signal, onProgress: (bytes) => report('STORE', bytes, total) },
  );
  return model.ExportModelResponse.fromPartial({ destinationUri: base, files: found.files });
}
