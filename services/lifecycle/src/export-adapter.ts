import { manifestOf } from '@medmesh/catalog';
import { invalidField } from '@medmesh/errors';
import { exportFiles } from '@medmesh/objects';
import type { lifecycle } from '@medmesh/proto';
import { getAdapter } from './adapters.ts';
import type { LifecycleDeps } from './deps.ts';

export const exportAdapterKind = 'export-adapter';

/** Refuses what is no folder or bucket. Whether this server may touch it is the store's to say. */
export function checkExportUri(field: string, uri: string): void {
  if (!/^(file:\/\/\/.|s3:\/\/[a-z0-9])/.test(uri))
    throw invalidField(field, 'use file:///folder or s3://bucket/prefix');
}

/** Copies an adapter's files to a folder or bucket, where PEFT opens them. An export that fails or is cancelled removes what it wrote. */
export async function exportAdapter(
  deps: LifecycleDeps,
  request: lifecycle.ExportAdapterRequest,
  signal: AbortSignal,
): Promise<lifecycle.ExportAdapterResponse> {
  checkExportUri('destination_uri', request.destinationUri);
  const adapter = await getAdapter(deps, { name: request.name });
  const base = request.destinationUri.replace(/\/+$/, '');
  await exportFiles(deps.store, manifestOf('adapter', adapter.files).files, base, { signal });
  return { destinationUri: base, files: adapter.files };
}
