import { manifestOf } from '@medmesh/catalog';
import { invalidField } from '@medmesh/errors';
import type { lifecycle } from '@medmesh/proto';
import { getAdapter } from './adapters.ts';
import type { LifecycleDeps } from './deps.ts';

export const exportAdapterKind = 'export-adapter';

/** Copies an adapter's files to a folder or bucket, where PEFT opens them. */
export async function exportAdapter(
  deps: LifecycleDeps,
  request: lifecycle.ExportAdapterRequest,
  signal: AbortSignal,
): Promise<lifecycle.ExportAdapterResponse> {
  if (!/^(file|s3):\/\//.test(request.destinationUri)) {
    throw invalidField('destination_uri', 'use file:///folder or s3://bucket/prefix');
  }
  const adapter = await getAdapter(deps, { name: request.name });
  const base = request.destinationUri.replace(/\/+$/, '');
  for (const file of manifestOf('adapter', adapter.files).files) {
    await deps.store.writeUri(`${base}/${file.path}`, deps.store.readBlob(file.digest, { signal }));
  }
  return { destinationUri: base, files: adapter.files };
}
