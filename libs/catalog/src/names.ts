import { formatName, parseName } from '@medmesh/records';

const pattern = {
  project: 'projects/{project}',
  model: 'projects/{project}/models/{model}',
  dataset: 'projects/{project}/datasets/{dataset}',
  datasetVersion: 'projects/{project}/datasets/{dataset}/versions/{version}',
  job: 'projects/{project}/fineTuningJobs/{job}',
  checkpoint: 'projects/{project}/fineTuningJobs/{job}/checkpoints/{step}',
  adapter: 'projects/{project}/adapters/{adapter}',
} as const;

const nameOf = <P extends (typeof pattern)[keyof typeof pattern]>(p: P) => ({
  /** Splits a resource name; Failure `invalid_argument` with the expected pattern if it does not fit. */
  parse: (name: string) => parseName(p, name),
  format: (parts: Parameters<typeof formatName<P>>[1]) => formatName(p, parts),
});

/** The resource names of medmesh. */
export const names = {
  project: nameOf(pattern.project),
  model: nameOf(pattern.model),
  dataset: nameOf(pattern.dataset),
  datasetVersion: nameOf(pattern.datasetVersion),
  job: nameOf(pattern.job),
  checkpoint: nameOf(pattern.checkpoint),
  adapter: nameOf(pattern.adapter),
};
