import { names } from '@medmesh/catalog';
import { Failure } from '@medmesh/errors';
import type { lifecycle, model } from '@medmesh/proto';

/** What tells one adapter of a job from another: its id, its files, and how far training had come. */
export type AdapterFacts = {
  adapterId: string;
  state: lifecycle.Adapter_State;
  digest: string;
  files: model.ArtifactFile[];
  /** Of the job's first dataset version. */
  template: lifecycle.Adapter['template'];
  loss: number;
  validationLoss: number | undefined;
};

/** The record of an adapter that a job trained, in the job's project. */
export function adapterOfJob(job: lifecycle.FineTuningJob, facts: AdapterFacts): lifecycle.Adapter {
  const spec = job.resolvedSpec;
  if (spec === undefined) throw new Failure('internal', 'the job has no resolved spec', { reason: 'RECORD_INVALID' });
  const now = new Date();
  return {
    name: names.adapter.format({ project: names.job.parse(job.name).project, adapter: facts.adapterId }),
    displayName: job.displayName,
    labels: job.labels,
    state: facts.state,
    digest: facts.digest,
    files: facts.files,
    baseModel: spec.baseModel,
    baseDigest: spec.baseDigest,
    fineTuningJob: job.name,
    datasetVersions: job.trainDatasets.map((mixture) => mixture.datasetVersion),
    template: facts.template,
    templateDigest: spec.templateDigest,
    tokenizerDigest: spec.tokenizerDigest,
    rank: spec.adapterSpec?.kind?.$case === 'lora' ? (spec.adapterSpec.kind.value.rank ?? 0) : 0,
    finalLoss: facts.loss,
    validationLoss: facts.validationLoss,
    createTime: now,
    updateTime: now,
    etag: '',
    traceparent: job.traceparent,
  };
}
