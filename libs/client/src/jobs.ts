import { Failure } from '@medmesh/errors';
import { lifecycle } from '@medmesh/proto';
import { type Client, fromStatus } from '@medmesh/rpc';
import { pageThrough } from './page-through.ts';

type JobInput = Parameters<typeof lifecycle.FineTuningJob.fromPartial>[0];

const State = lifecycle.FineTuningJob_State;
const terminal: readonly lifecycle.FineTuningJob_State[] = [
  State.SUCCEEDED,
  State.FAILED,
  State.CANCELLED,
  State.EXPIRED,
];

/** Fine-tuning jobs. A job is named by id or by full name. */
export type JobsClient = {
  name(id: string): string;
  create(
    job: JobInput,
    options?: { id?: string; requestId?: string; validateOnly?: boolean },
  ): Promise<lifecycle.FineTuningJob>;
  get(idOrName: string): Promise<lifecycle.FineTuningJob>;
  list(filter?: string): AsyncGenerator<lifecycle.FineTuningJob>;
  estimate(job: JobInput): Promise<lifecycle.FineTuningEstimate>;
  /** Every event from the cursor on, through lost connections, until the terminal one. */
  watch(
    idOrName: string,
    options?: { afterSequence?: number; signal?: AbortSignal },
  ): AsyncGenerator<lifecycle.JobEvent>;
  /** Watches until the job has ended; throws its error if it failed. */
  waitFor(
    idOrName: string,
    options?: { onEvent?: (event: lifecycle.JobEvent) => void; signal?: AbortSignal },
  ): Promise<lifecycle.FineTuningJob>;
  cancel(idOrName: string): Promise<lifecycle.FineTuningJob>;
  pause(idOrName: string): Promise<lifecycle.FineTuningJob>;
  resume(idOrName: string): Promise<lifecycle.FineTuningJob>;
  delete(idOrName: string): Promise<void>;
  checkpoints(idOrName: string): AsyncGenerator<lifecycle.Checkpoint>;
  /** Makes an adapter of the checkpoint after `step` steps. */
  promote(idOrName: string, step: number, adapterId: string): Promise<lifecycle.Adapter>;
  metrics(idOrName: string, pointCount?: number): Promise<lifecycle.Progress[]>;
};

const reconnectMs = 500;
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

export function createJobsClient(service: Client<lifecycle.FineTuningServiceDefinition>, parent: string): JobsClient {
  const name = (id: string) => (id.startsWith('projects/') ? id : `${parent}/fineTuningJobs/${id}`);

  async function* watch(
    idOrName: string,
    options: { afterSequence?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<lifecycle.JobEvent> {
    let afterSequence = options.afterSequence ?? 0;
    for (;;) {
      try {
        const events = service.watchFineTuningJob(
          { name: name(idOrName), afterSequence },
          options.signal === undefined ? {} : { signal: options.signal },
        );
        for await (const event of events) {
          afterSequence = event.sequence;
          yield event;
          if (event.payload?.$case === 'stateChange' && terminal.includes(event.payload.value.to)) return;
        }
        return;
      } catch (error) {
        // The cursor makes a lost connection harmless: nothing is missed, nothing comes twice.
        if (!(error instanceof Failure && error.code === 'unavailable') || options.signal?.aborted) throw error;
        await sleep(reconnectMs);
      }
    }
  }

  return {
    name,
    create: (job, options = {}) =>
      service.createFineTuningJob({
        parent,
        fineTuningJobId: options.id ?? '',
        fineTuningJob: job,
        requestId: options.requestId ?? '',
        validateOnly: options.validateOnly ?? false,
      }),
    get: (idOrName) => service.getFineTuningJob({ name: name(idOrName) }),
    list: (filter = '') =>
      pageThrough(
        (pageToken) => service.listFineTuningJobs({ parent, pageSize: 1000, pageToken, filter }),
        (page) => page.fineTuningJobs,
      ),
    estimate: (job) => service.estimateFineTuningJob({ parent, fineTuningJob: job }),
    watch,
    async waitFor(idOrName, options = {}) {
      for await (const event of watch(idOrName, options.signal === undefined ? {} : { signal: options.signal }))
        options.onEvent?.(event);
      const job = await service.getFineTuningJob({ name: name(idOrName) });
      if (job.state === State.FAILED && job.error !== undefined) throw fromStatus(job.error);
      return job;
    },
    cancel: (idOrName) => service.cancelFineTuningJob({ name: name(idOrName) }),
    pause: (idOrName) => service.pauseFineTuningJob({ name: name(idOrName) }),
    resume: (idOrName) => service.resumeFineTuningJob({ name: name(idOrName) }),
    async delete(idOrName) {
      await service.deleteFineTuningJob({ name: name(idOrName) });
    },
    checkpoints: (idOrName) =>
      pageThrough(
        (pageToken) => service.listCheckpoints({ parent: name(idOrName), pageSize: 1000, pageToken }),
        (page) => page.checkpoints,
      ),
    promote: (idOrName, step, adapterId) =>
      service.promoteCheckpoint({
        name: `${name(idOrName)}/checkpoints/${String(step).padStart(9, '0')}`,
        adapterId,
      }),
    async metrics(idOrName, pointCount = 0) {
      const { points } = await service.queryJobMetrics({ name: name(idOrName), pointCount });
      return points;
    },
  };
}
