import type { Trainer } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { trainerOptions, transition } from '@medmesh/jobs';
import { lifecycle } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { withSpan } from '@medmesh/telemetry';
import { createBatchPlan, longestMicroBatch } from './batch-plan.ts';
import { commitCheckpoint, newestCheckpoint, pruneCheckpoints } from './checkpoints.ts';
import type { TrainerDeps } from './deps.ts';
import { describeDevice, deviceNamed } from './device.ts';
import { watchDeviceMemory } from './device-memory.ts';
import { evaluationTokens } from './evaluate.ts';
import { watchJob } from './job-control.ts';
import { type JobInputs, openInputs } from './job-inputs.ts';
import { createProgress } from './progress.ts';
import { publishAdapter } from './publish-adapter.ts';
import { type LoopEnd, trainLoop } from './train-loop.ts';

const State = lifecycle.FineTuningJob_State;
const Phase = lifecycle.FineTuningJob_Phase;

/** What a worker shows of itself. */
export type WorkerStatus = {
  job: string;
  step: number;
  totalSteps: number;
  tokensPerSecond: number;
  peakMemoryBytes: number;
  /** As in the job's progress. */
  modelFlopsUtilization: number | undefined;
  plannedMemoryBytes: number;
  deviceMemoryBytes: number;
};

/** Every tenth of the run, but neither more often than every 10 steps nor less often than every 500. */
const defaultCheckpointInterval = (steps: number): number => Math.min(500, Math.max(10, Math.ceil(steps / 10)));

const durationMs = (duration: { seconds: number; nanos: number } | undefined): number =>
  duration === undefined ? 0 : duration.seconds * 1000 + duration.nanos / 1e6;

/** Changes the job's record as its owner. Failure `aborted` FENCED_OUT if a newer owner has taken it. */
export async function changeOwned(
  deps: TrainerDeps,
  name: string,
  fencingToken: number,
  edit: (job: lifecycle.FineTuningJob) => lifecycle.FineTuningJob,
): Promise<lifecycle.FineTuningJob> {
  const entry = await deps.catalog.jobs.modify(keyOf(name), (job) => {
    if (job.fencingToken > fencingToken)
      throw new Failure('aborted', `another worker took over ${name}`, { reason: 'FENCED_OUT' });
    return edit(job);
  });
  return entry.value;
}

/** The newest committed state: this job's own newest checkpoint, else the one its spec starts from. Returns the counters to go on with. */
async function restore(
  deps: TrainerDeps,
  job: lifecycle.FineTuningJob,
  inputs: JobInputs,
  trainer: { restoreCheckpoint(dir: string): Promise<void> },
  signal: AbortSignal,
) {
  const newest = await newestCheckpoint(deps, job.name, job.resolvedSpecDigest);
  if (newest !== undefined) {
    const { dir, release } = await deps.cache.materialize(await deps.store.getManifest(newest.digest), signal);
    try {
      await trainer.restoreCheckpoint(dir);
    } finally {
      release();
    }
    deps.log.info({ job: job.name, step: newest.step }, 'resumed from a checkpoint');
    return newest.counters;
  }
  if (inputs.initialCheckpointDir !== undefined) await trainer.restoreCheckpoint(inputs.initialCheckpointDir);
  return undefined;
}

/**
 * One attempt at a job: from the claimed record to a terminal state, a pause, or a hand-back.
 * `stop`: the process wants to end (checkpoint and hand back). `signal`: ownership was lost (leave everything as it is).
 */
export async function runAttempt(
  deps: TrainerDeps,
  claimed: lifecycle.FineTuningJob,
  stop: AbortSignal,
  signal: AbortSignal,
  fence: () => void,
  status: (status: WorkerStatus) => void,
): Promise<LoopEnd['kind']> {
  const spec = claimed.resolvedSpec;
  if (spec?.schedule === undefined)
    throw new Failure('internal', 'the job has no resolved spec', { reason: 'RECORD_INVALID' });
  const { name, fencingToken } = claimed;
  const totalSteps = spec.schedule.steps;
  const control = watchJob(deps.catalog.jobs, name, fencingToken, fence);
  let inputs: JobInputs | undefined;
  const setPhase = async (phase: lifecycle.FineTuningJob_Phase) => {
    await changeOwned(deps, name, fencingToken, (job) => ({ ...job, phase, lastHeartbeatTime: new Date() }));
  };
  try {
    const within = AbortSignal.any([signal, control.cancelled]);
    inputs = await openInputs(deps, claimed, spec, setPhase, within);
    const opened = inputs;
    const rowLength = (row: number) => opened.train.rowLength(row);
    const batch = spec.batch ?? lifecycle.BatchSpec.fromPartial({});
    const plan = createBatchPlan(opened.train.rowCount, rowLength, { ...batch }, spec.seed);
    const evaluated = opened.validation === undefined ? 0 : evaluationTokens(opened.validation);
    await using trainer = await disposable(
      opened.model.createTrainer({
        ...trainerOptions(spec, opened.initialAdapterDir),
        memoryBudget: claimed.resources?.memoryBudgetBytes || deps.config.ENGINE_MEMORY_BUDGET,
        microBatchTokens: Math.max(longestMicroBatch(plan, rowLength, totalSteps), evaluated),
      }),
    );
    const counters = await restore(deps, claimed, opened, trainer.value, within);
    const device = deviceNamed(trainer.value.device);
    await announceDevice(deps, name, trainer.value);
    const progress = createProgress(totalSteps, trainer.value.step, counters, {
      device,
      usedMemory: watchDeviceMemory(device),
    });
    await setPhase(Phase.TRAIN);

    let bestCheckpoint = claimed.bestCheckpoint;
    let lastLoss = 0;
    let lastPublishedMs = Number.NEGATIVE_INFINITY;
    let lastRecordedMs = deps.now();
    const keep = claimed.checkpointing?.keep || 2;
    const checkpoint = async () => {
      const facts = {
        job: claimed,
        fencingToken,
        loss: lastLoss,
        validationLoss: progress.snapshot(0).validationLoss,
        counters: progress.counters,
      };
      const saved = await commitCheckpoint(deps, trainer.value, opened, facts, signal);
      const isBest = progress.counters.evaluationsWithoutImprovement === 0;
      if (isBest || bestCheckpoint === '') bestCheckpoint = saved.name;
      await changeOwned(deps, name, fencingToken, (job) => ({ ...job, bestCheckpoint }));
      await pruneCheckpoints(deps, name, keep, bestCheckpoint);
    };

    const end = await withSpan('trainer.train', { attributes: { 'medmesh.total_steps': totalSteps } }, () =>
      trainLoop(
        trainer.value,
        opened,
        plan,
        {
          totalSteps,
          checkpointInterval: claimed.checkpointing?.intervalSteps || defaultCheckpointInterval(totalSteps),
          evaluationInterval: spec.evaluation?.intervalSteps ?? 0,
          earlyStop: spec.earlyStop,
          maxTokens: claimed.budget?.maxTokens ?? 0,
          maxDurationMs: durationMs(claimed.budget?.maxDuration),
        },
        progress,
        control,
        {
          async onStep(result) {
            lastLoss = result.loss;
            const snapshot = progress.snapshot(plan.epochAfter(result.step));
            status({
              job: name,
              step: snapshot.step,
              totalSteps,
              tokensPerSecond: snapshot.tokensPerSecond,
              peakMemoryBytes: snapshot.peakMemoryBytes,
              modelFlopsUtilization: snapshot.modelFlopsUtilization,
              plannedMemoryBytes: snapshot.plannedMemoryBytes,
              deviceMemoryBytes: snapshot.deviceMemoryBytes,
            });
            const now = deps.now();
            if (now - lastPublishedMs >= deps.config.METRIC_INTERVAL_MS || result.step === totalSteps) {
              lastPublishedMs = now;
              await deps.events.publish(name, {
                reason: result.skipped ? 'NAN_SKIPPED' : 'STEP',
                level: result.skipped ? lifecycle.JobEvent_Level.WARNING : lifecycle.JobEvent_Level.INFO,
                message: `step ${result.step} of ${totalSteps}`,
                payload: { $case: 'metrics', value: { progress: snapshot } },
              });
            }
            if (now - lastRecordedMs >= 1_000 || result.step === totalSteps) {
              lastRecordedMs = now;
              await changeOwned(deps, name, fencingToken, (job) => ({
                ...job,
                progress: snapshot,
                lastHeartbeatTime: new Date(now),
              }));
            }
          },
          async onEvaluation(loss, trainableTokens) {
            await deps.events.publish(name, {
              reason: 'EVALUATION',
              message: `validation loss ${loss.toFixed(4)} after step ${trainer.value.step}`,
              payload: {
                $case: 'evaluation',
                value: { step: trainer.value.step, loss, trainableTokenCount: trainableTokens },
              },
            });
          },
          checkpoint,
        },
        stop,
        signal,
      ),
    );
    if (end.kind !== 'done') return end.kind;

    await checkpoint();
    await setPhase(Phase.PUBLISH);
    await publishAdapter(
      deps,
      trainer.value,
      opened,
      {
        job: claimed,
        spec,
        fencingToken,
        progress: progress.snapshot(plan.epochAfter(trainer.value.step)),
        completionReason: end.reason,
        bestCheckpoint,
      },
      within,
    );
    return 'done';
  } finally {
    await inputs?.close();
    await control.close();
  }
}

/** Says where the job trains and, if that is not the GPU there is, why. */
async function announceDevice(deps: TrainerDeps, job: string, trainer: Trainer): Promise<void> {
  const device = describeDevice(deviceNamed(trainer.device));
  const fell = trainer.noGpuBecause !== '';
  const message = fell ? `trains on ${device}, not on the GPU: ${trainer.noGpuBecause}` : `trains on ${device}`;
  const facts = { job, trainableParameters: trainer.trainableParameterCount };
  if (fell) deps.log.warn(facts, message);
  else deps.log.info(facts, message);
  await deps.events.publish(job, {
    reason: 'DEVICE_CHOSEN',
    level: fell ? lifecycle.JobEvent_Level.WARNING : lifecycle.JobEvent_Level.INFO,
    message,
  });
}

/** An engine object that is closed with its block. */
async function disposable<T extends { close(): Promise<void> }>(
  opening: Promise<T>,
): Promise<AsyncDisposable & { value: T }> {
  const value = await opening;
  return { value, [Symbol.asyncDispose]: () => value.close() };
}

/** Puts an unfinished job where it belongs: PAUSED if its user asked for that, else back in the queue. */
export async function handBack(deps: TrainerDeps, name: string, fencingToken: number): Promise<void> {
  let from: lifecycle.FineTuningJob_State = State.RUNNING;
  const job = await changeOwned(deps, name, fencingToken, (current) => {
    from = current.state;
    if (current.state !== State.RUNNING && current.state !== State.PAUSING) return current;
    return transition(current, current.state === State.PAUSING ? State.PAUSED : State.PENDING, {
      phase: Phase.UNSPECIFIED,
    });
  });
  await deps.events.publish(name, {
    reason: 'STATE_CHANGED',
    message: job.state === State.PAUSED ? 'the job is paused' : 'the worker handed the job back',
    payload: {
      $case: 'stateChange',
      value: { from, to: job.state, phase: job.phase, completionReason: job.completionReason },
    },
  });
}
