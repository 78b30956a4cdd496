import { dataset, lifecycle, model, trainer } from '@medmesh/proto';
import type { Bucket, Codec, Records } from '@medmesh/records';

/** Every kind of record, typed. Keys are resource names (`keyOf`). */
export type Catalog = {
  /** `projects/{project}/models/{model}` */
  models: Bucket<model.Model>;
  /** `projects/{project}/datasets/{dataset}` */
  datasets: Bucket<dataset.Dataset>;
  /** `projects/{project}/datasets/{dataset}/versions/{version}` */
  datasetVersions: Bucket<dataset.DatasetVersion>;
  /** `projects/{project}/fineTuningJobs/{job}` */
  jobs: Bucket<lifecycle.FineTuningJob>;
  /** `projects/{project}/fineTuningJobs/{job}/checkpoints/{step}` */
  checkpoints: Bucket<lifecycle.Checkpoint>;
  /** `projects/{project}/adapters/{adapter}`. Pending ones (state UNSPECIFIED) are not yet visible: see lifecycle. */
  adapters: Bucket<lifecycle.Adapter>;
  /** Who works on a job: keyed by the job's name. */
  leases: Bucket<trainer.Lease>;
};

type MessageType<T> = { encode(message: T): { finish(): Uint8Array }; decode(bytes: Uint8Array): T };

const protobuf = <T>(type: MessageType<T>): Codec<T> => ({
  encode: (value) => type.encode(value).finish(),
  decode: (bytes) => type.decode(bytes),
});

export async function openCatalog(records: Records): Promise<Catalog> {
  const [models, datasets, datasetVersions, jobs, checkpoints, adapters, leases] = await Promise.all([
    records.bucket('models', protobuf(model.Model)),
    records.bucket('datasets', protobuf(dataset.Dataset)),
    records.bucket('dataset-versions', protobuf(dataset.DatasetVersion)),
    records.bucket('jobs', protobuf(lifecycle.FineTuningJob)),
    records.bucket('checkpoints', protobuf(lifecycle.Checkpoint)),
    records.bucket('adapters', protobuf(lifecycle.Adapter)),
    records.bucket('leases', protobuf(trainer.Lease)),
  ]);
  return { models, datasets, datasetVersions, jobs, checkpoints, adapters, leases };
}
