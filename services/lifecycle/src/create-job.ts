import { randomBytes, randomUUID } from 'node:crypto';
import { names } from '@medmesh/catalog';
import { Failure } from '@medmesh/errors';
import { State } from '@medmesh/jobs';
import { lifecycle } from '@medmesh/proto';
import { checkResourceId, etagOf, idempotent, keyOf } from '@medmesh/records';
import { activeTraceparent, traceId } from '@medmesh/telemetry';
import type { LifecycleDeps } from './deps.ts';
import { dispatch } from './dispatch.ts';
import { resolveSpec } from './resolve-spec.ts';

/** A job as the API shows it: with its record's etag. */
export const withEtag = (job: lifecycle.FineTuningJob, revision: number): lifecycle.FineTuningJob => ({
  ...job,
  etag: etagOf(revision),
});

/** Only what a user may set survives: output-only fields of a request are ignored. */
const userFields = (job: lifecycle.FineTuningJob): lifecycle.FineTuningJob =>
  lifecycle.FineTuningJob.fromPartial({
    displayName: job.displayName,
    trainDatasets: job.trainDatasets,
    validationDataset: job.validationDataset,
    adapterSpec: job.adapterSpec,
    quantization: job.quantization,
    optimizer: job.optimizer,
    schedule: job.schedule,
    batch: job.batch,
    evaluation: job.evaluation,
    earlyStop: job.earlyStop,
    checkpointing: job.checkpointing,
    resources: job.resources,
    budget: job.budget,
    publish: job.publish,
    seed: job.seed,
    labels: job.labels,
    ...(job.source === undefined ? {} : { source: job.source }),
    ...(job.method === undefined ? {} : { method: job.method }),
  });

/** Checks a job, records it and hands it to the trainers. With `validate_only`, checks it and returns what it would be. */
export async function createFineTuningJob(
  deps: LifecycleDeps,
  request: lifecycle.CreateFineTuningJobRequest,
): Promise<lifecycle.FineTuningJob> {
  const { project } = names.project.parse(request.parent);
  if (request.fineTuningJob === undefined) {
    throw new Failure('invalid_argument', 'fine_tuning_job is missing', {
      reason: 'FIELD_INVALID',
      fields: [{ field: 'fine_tuning_job', description: 'is missing' }],
    });
  }
  if (request.fineTuningJobId !== '') checkResourceId(request.fineTuningJobId, 'fine_tuning_job_id');
  const asked = userFields(request.fineTuningJob);
  if (asked.publish?.adapterId) checkResourceId(asked.publish.adapterId, 'fine_tuning_job.publish.adapter_id');

  const create = async (): Promise<lifecycle.FineTuningJob> => {
    const resolved = await resolveSpec(deps, asked);
    const now = new Date();
    const planned: lifecycle.FineTuningJob = {
      ...asked,
      state: State.QUEUED,
      resolvedSpec: resolved.spec,
      resolvedSpecDigest: resolved.digest,
      dataStats: resolved.dataStats,
      estimate: resolved.estimate,
      progress: lifecycle.Progress.fromPartial({ totalSteps: resolved.spec.schedule?.steps ?? 0 }),
      createTime: now,
      updateTime: now,
      traceId: traceId() ?? '',
      traceparent: activeTraceparent() ?? '',
    };
    if (request.validateOnly) return planned;
    if (!resolved.estimate.allowedToProceed) {
      throw new Failure('failed_precondition', resolved.estimate.blockers.join('; '), {
        reason: 'ESTIMATE_EXCEEDS_MEMORY',
      });
    }
    const id = request.fineTuningJobId || `job-${randomBytes(5).toString('hex')}`;
    const adapterId = planned.publish?.adapterId || id;
    const adapterName = names.adapter.format({ project, adapter: adapterId });
    if ((await deps.catalog.adapters.get(keyOf(adapterName))) !== undefined) {
      throw new Failure('already_exists', `${adapterName} exists; choose another publish.adapter_id`, {
        reason: 'ADAPTER_EXISTS',
      });
    }
    const name = names.job.format({ project, job: id });
    const job = { ...planned, name, uid: randomUUID(), publish: { ...planned.publish, adapterId } };
    const entry = await deps.catalog.jobs.create(keyOf(name), job);
    await dispatch(deps, entry.value);
    const recorded = await deps.catalog.jobs.get(keyOf(name));
    return withEtag(recorded?.value ?? entry.value, recorded?.revision ?? entry.revision);
  };

  if (request.validateOnly) return create();
  return idempotent(
    deps.records,
    {
      method: 'CreateFineTuningJob',
      requestId: request.requestId,
      body: lifecycle.CreateFineTuningJobRequest.encode({ ...request, requestId: '' }).finish(),
      resCodec: {
        encode: (job: lifecycle.FineTuningJob) => lifecycle.FineTuningJob.encode(job).finish(),
        decode: (bytes: Uint8Array) => lifecycle.FineTuningJob.decode(bytes),
      },
    },
    create,
  );
}
