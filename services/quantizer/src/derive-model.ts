import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { model } from '@medmesh/proto';
import type { QuantizerDeps, Report } from './deps.ts';
import { commitModel, dropReservation, reserveModel } from './new-model.ts';

/** Makes a new model of stored ones: `make` fills the folder; nothing is left behind if it fails. */
export async function deriveModel(
  deps: QuantizerDeps,
  o: { name: string; operation: string; inputs: string[]; origin: model.ModelOrigin },
  make: (inputDirs: string[], outDir: string) => Promise<unknown>,
  report: Report,
  signal: AbortSignal,
): Promise<model.Model> {
  await reserveModel(deps, o.name, o.operation, { origin: o.origin });
  await mkdir(deps.config.STAGING_DIR, { recursive: true });
  const staging = await mkdtemp(join(deps.config.STAGING_DIR, 'derive-'));
  const releases: (() => void)[] = [];
  try {
    const inputDirs: string[] = [];
    for (const digest of o.inputs) {
      const { dir, release } = await deps.cache.materialize(await deps.store.getManifest(digest), signal);
      releases.push(release);
      inputDirs.push(dir);
    }
    const outDir = join(staging, 'model');
    await make(inputDirs, outDir);
    return await commitModel(deps, o.name, o.operation, outDir, o.origin, report, signal);
  } catch (error) {
    await dropReservation(deps, o.name, o.operation);
    throw error;
  } finally {
    for (const release of releases) release();
    await rm(staging, { recursive: true, force: true });
  }
}
