import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { openCatalog } from '@medmesh/catalog';
import { Failure, notFound } from '@medmesh/errors';
import { consumeWork, Requeue, subjects } from '@medmesh/events';
import { createJobEvents } from '@medmesh/jobs';
import { trainer } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { bind, type ServiceBinding } from '@medmesh/rpc';
import type { ServiceContext, Started } from '@medmesh/service';
import type { TrainerConfig } from './config.ts';
import type { TrainerDeps } from './deps.ts';
import { chooseDevice, describeDevice } from './device.ts';
import type { WorkerStatus } from './run-attempt.ts';
import { exitCodes, type WorkResult, work } from './worker.ts';

const idle: WorkerStatus = {
  job: '',
  step: 0,
  totalSteps: 0,
  tokensPerSecond: 0,
  peakMemoryBytes: 0,
  modelFlopsUtilization: undefined,
  plannedMemoryBytes: 0,
  deviceMemoryBytes: 0,
};

type Shown = { current: WorkerStatus; draining: boolean };

const trainerService = (deps: TrainerDeps, shown: Shown, drain: () => Promise<void>): ServiceBinding =>
  bind(trainer.TrainerServiceDefinition, {
    getTrainerStatus() {
      const uptimeMs = process.uptime() * 1000;
      return Promise.resolve({
        worker: deps.worker,
        device: describeDevice(chooseDevice(deps.config.ENGINE_DEVICE)),
        fineTuningJob: shown.current.job,
        step: shown.current.step,
        totalSteps: shown.current.totalSteps,
        draining: shown.draining,
        tokensPerSecond: shown.current.tokensPerSecond,
        peakMemoryBytes: shown.current.peakMemoryBytes,
        uptime: { seconds: Math.floor(uptimeMs / 1000), nanos: 0 },
      });
    },
    async drainTrainer() {
      const { job } = shown.current;
      await drain();
      return { fineTuningJob: job };
    },
  });

/** Takes work from the queue, or with JOB works on that one job and ends the process with its exit code. */
export async function startTrainer(context: ServiceContext<TrainerConfig>): Promise<Started> {
  const { nc, records, store, cache, publisher, log, config, metrics } = context;
  const device = chooseDevice(config.ENGINE_DEVICE);
  log.info({ device: describeDevice(device) }, 'training runs here');
  const stop = new AbortController();
  const ended = Promise.withResolvers<number>();
  const deps: TrainerDeps = {
    catalog: await openCatalog(records),
    store,
    cache,
    events: createJobEvents(publisher),
    publisher,
    log,
    config,
    worker: `${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`,
    now: Date.now,
    onDeviceLost() {
      log.error({ device: describeDevice(device) }, 'the device is lost; the work goes back and the process ends');
      stop.abort();
      ended.resolve(exitCodes.handed_back);
    },
  };
  const shown: Shown = { current: idle, draining: false };
  const speed = metrics.gauge({
    name: 'medmesh_train_tokens_per_second',
    help: 'tokens trained on, over the last steps',
  });
  const memory = metrics.gauge({
    name: 'medmesh_train_peak_memory_bytes',
    help: 'highest memory the engine used for the job',
  });
  const utilization = metrics.gauge({
    name: 'medmesh_train_model_flops_utilization_ratio',
    help: 'arithmetic that the last steps could not do without, as a share of the GPU’s bf16 peak by its datasheet; 0 where that is not known',
  });
  const planned = metrics.gauge({
    name: 'medmesh_train_planned_memory_bytes',
    help: 'memory that the job takes on the GPU by its plan; 0 on a CPU',
  });
  const used = metrics.gauge({
    name: 'medmesh_train_device_memory_bytes',
    help: 'memory of the GPU in use while the job trains, by this and other processes; 0 on a CPU',
  });
  const show = (status: WorkerStatus) => {
    shown.current = status;
    speed.set(status.tokensPerSecond);
    memory.set(status.peakMemoryBytes);
    utilization.set(status.modelFlopsUtilization ?? 0);
    planned.set(status.plannedMemoryBytes);
    used.set(status.deviceMemoryBytes);
  };
  const run = async (message: trainer.TrainingWork): Promise<WorkResult> => {
    try {
      return await work(deps, message, stop.signal, show);
    } finally {
      show(idle);
    }
  };

  if (config.JOB !== undefined) {
    const name = config.JOB;
    const job = (await deps.catalog.jobs.get(keyOf(name)))?.value;
    if (job === undefined) throw notFound(name);
    const done = run({ fineTuningJob: name, uid: job.uid }).then(
      (result) => exitCodes[result],
      (error: unknown) => {
        if (error instanceof Requeue) return exitCodes.handed_back;
        throw error;
      },
    );
    const halt = async () => {
      shown.draining = true;
      stop.abort();
      await done.catch(() => undefined);
    };
    return { services: [trainerService(deps, shown, halt)], stop: halt, done };
  }

  let handedBack = false;
  const consumer = await consumeWork({
    nc,
    subject: subjects.work('training'),
    durable: 'trainer',
    concurrency: 1,
    ackWaitMs: config.LEASE_TTL_MS,
    maxDeliver: 1_000,
    backoffMs: 1_000,
    log,
    signal: context.signal,
    async handler(message) {
      const item = trainer.TrainingWork.decode(message.data);
      if (item.fineTuningJob === '')
        throw new Failure('invalid_argument', 'the work names no job', { reason: 'WORK_INVALID' });
      try {
        await run(item);
      } catch (error) {
        if (error instanceof Requeue && stop.signal.aborted) handedBack = true;
        throw error;
      }
    },
  });
  const drain = async () => {
    shown.draining = true;
    stop.abort();
    await consumer.stop();
  };
  return {
    services: [trainerService(deps, shown, drain)],
    async stop() {
      await drain();
      // 75 tells whoever started the process that unfinished work went back to the queue.
      ended.resolve(handedBack ? exitCodes.handed_back : 0);
    },
    done: ended.promise,
  };
}
