import { rm } from 'node:fs/promises';
import { names } from '@medmesh/catalog';
import { model } from '@medmesh/proto';
import type { QuantizerDeps, Run } from './deps.ts';
import { chooseModelFiles } from './model-files.ts';
import { commitModel, dropReservation, reserveModel } from './new-model.ts';
import { openSource } from './sources/open-source.ts';
import { stageFiles } from './stage-files.ts';
import { failureOf, isHandedOn, stagingFolder } from './staging.ts';

/** The name of the model that an import makes. */
export const importedName = ({ parent, modelId }: model.ImportModelRequest): string =>
  names.model.format({ project: names.project.parse(parent).project, model: modelId });

/**
 * Imports a model: list, choose, fetch, verify, store, record. Staging is named by model, origin and revision, so an import that broke off, was killed,
 * or failed by something that passes, goes on where it was. After a cancel or a fault that stays, nothing is left.
 */
export async function importModel(
  deps: QuantizerDeps,
  request: model.ImportModelRequest,
  run: Run,
): Promise<model.Model> {
  const { signal, report } = run;
  const name = importedName(request);
  const made = await reserveModel(deps, name, run.operation, { displayName: request.displayName });
  if (made !== undefined) return made;
  let staging: string | undefined;
  try {
    report('DOWNLOAD', 0, 0);
    const source = await openSource(deps, request, signal);
    const files = chooseModelFiles(source.files, request.uri);
    const listing = files.map((file) => [file.path, file.sizeBytes, file.digest?.hex ?? '']);
    staging = stagingFolder(deps.config.STAGING_DIR, 'import', [name, request.uri, source.revision, listing]);
    await stageFiles(source, files, staging, (done, total) => report('DOWNLOAD', done, total), signal);
    const origin = model.ModelOrigin.fromPartial({ uri: request.uri, revision: source.revision });
    const imported = await commitModel(deps, name, staging, origin, run);
    await rm(staging, { recursive: true, force: true });
    return imported;
  } catch (error) {
    const failure = failureOf(error, signal);
    if (isHandedOn(failure)) throw failure;
    await dropReservation(deps, name, run.operation);
    if (staging !== undefined && !failure.retryable) await rm(staging, { recursive: true, force: true });
    throw failure;
  }
}
