import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { model } from '@medmesh/proto';
import type { QuantizerDeps, Run } from './deps.ts';
import { commitModel, dropReservation, reserveModel } from './new-model.ts';
import { failureOf, isHandedOn, stagingFolder } from './staging.ts';

export type Derivation = {
  name: string;
  /** Digests of the manifests that are needed, in the order `make` is given their folders. */
  inputs: readonly string[];
  origin: model.ModelOrigin;
  /** Writes the new model's folder; `outDir` does not exist yet. */
  make: (inputDirs: string[], outDir: string) => Promise<void>;
};

/** Makes a new model of stored ones. Nothing is left behind if it fails; after a crash it begins again. */
export async function deriveModel(deps: QuantizerDeps, o: Derivation, run: Run): Promise<model.Model> {
  const made = await reserveModel(deps, o.name, run.operation, { origin: o.origin });
  if (made !== undefined) return made;
  const staging = stagingFolder(deps.config.STAGING_DIR, 'derive', [run.operation]);
  const releases: (() => void)[] = [];
  try {
    await rm(staging, { recursive: true, force: true });
    await mkdir(staging, { recursive: true });
    const inputDirs: string[] = [];
    for (const digest of o.inputs) {
      const { dir, release } = await deps.cache.materialize(await deps.store.getManifest(digest), run.signal);
      releases.push(release);
      inputDirs.push(dir);
    }
    const outDir = join(staging, 'model');
    await o.make(inputDirs, outDir);
    return await commitModel(deps, o.name, outDir, o.origin, run);
  } catch (error) {
    const failure = failureOf(error, run.signal);
    if (!isHandedOn(failure)) await dropReservation(deps, o.name, run.operation);
    throw failure;
  } finally {
    for (const release of releases) release();
    await rm(staging, { recursive: true, force: true });
  }
}
