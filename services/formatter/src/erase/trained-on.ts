import type { Catalog } from '@medmesh/catalog';
import { lifecycle } from '@medmesh/proto';
import { eachEntry, keyOf } from '@medmesh/records';

export type TrainedOn = { adapters: string[]; jobs: string[]; models: string[] };

/** What of a project was trained on any of these dataset versions, directly or by merging an adapter that was. */
export async function trainedOn(catalog: Catalog, project: string, versions: ReadonlySet<string>): Promise<TrainedOn> {
  const found: TrainedOn = { adapters: [], jobs: [], models: [] };
  for await (const { value } of eachEntry(catalog.jobs, keyOf(`projects/${project}/fineTuningJobs/`))) {
    const used = [...value.trainDatasets.map((mixture) => mixture.datasetVersion), value.validationDataset];
    if (used.some((name) => versions.has(name))) found.jobs.push(value.name);
  }
  for await (const { value } of eachEntry(catalog.adapters, keyOf(`projects/${project}/adapters/`))) {
    // One that is pending belongs to a job that has not succeeded: it does not exist.
    if (value.state === lifecycle.Adapter_State.UNSPECIFIED) continue;
    if (value.datasetVersions.some((name) => versions.has(name)) || found.jobs.includes(value.fineTuningJob))
      found.adapters.push(value.name);
  }
  for await (const { value } of eachEntry(catalog.models, keyOf(`projects/${project}/models/`))) {
    if (found.adapters.includes(value.origin?.adapter ?? '')) found.models.push(value.name);
  }
  return found;
}
