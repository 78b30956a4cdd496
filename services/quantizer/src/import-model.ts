import { createHash } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { names } from '@medmesh/catalog';
import { Failure } from '@medmesh/errors';
import { model } from '@medmesh/proto';
import type { QuantizerDeps, Report } from './deps.ts';
import { chooseModelFiles } from './model-files.ts';
import { commitModel, dropReservation, reserveModel } from './new-model.ts';
import { openSource } from './sources/open-source.ts';
import { stageFiles } from './stage-files.ts';

/** Faults that a second try of the same import may not meet: what has been fetched is kept for it. */
const isPassing = (error: unknown) => !(error instanceof Failure) || ['unavailable', 'deadline_exceeded', 'cancelled', 'internal'].includes(error.code);

/**
 * Imports a model: list, choose, fetch, verify, store, record. Staging is named by origin and revision, so an import that broke off, or was killed, goes on
 * where it was.
 */
export async function importModel(deps: QuantizerDeps, request: model.ImportModelRequest, operation: string, report: Report, signal: AbortSignal): Promise<model.Model> {
  const { project } = names.project.parse(request.parent);
  const name = names.model.format({ project, model: request.modelId });
  await reserveModel(deps, name, operation, { displayName: request.displayName });
  let staging: string | undefined;
  try {
    report('DOWNLOAD', 0, 0);
    const source = await openSource(deps, request, signal);
    const files = chooseModelFiles(source.files, request.uri);
    const listing = JSON.stringify([request.uri, source.revision, files.map((file) => [file.path, file.sizeBytes, file.sha256 ?? ''])]);
    staging = join(deps.config.STAGING_DIR, `import-${createHash('sha256').update(listing).digest('hex').slice(0, 32)}`);
    await stageFiles(source, files, staging, (done, total) => report('DOWNLOAD', done, total), signal);
    const origin = model.ModelOrigin.fromPartial({ uri: request.uri, revision: source.revision });
    const imported = await commitModel(deps, name, operation, staging, origin, report, signal);
    await rm(staging, { recursive: true, force: true });
    return imported;
  } catch (error) {
    await dropReservation(deps, name, operation);
    if (staging !== undefined && !isPassing(error)) await rm(staging, { recursive: true, force: true });
    throw error;
  }
}
