import type { StepResult, Trainer } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { lifecycle } from '@medmesh/proto';
import { withSpan } from '@medmesh/telemetry';
import type { BatchPlan } from './batch-plan.ts';
import { evaluateRows } from './evaluate.ts';
import type { JobControl } from './job-control.ts';
import type { JobInputs } from './job-inputs.ts';
import { readMicroBatch } from './micro-batch.ts';
import type { ProgressTracker } from './progress.ts';

const Reason = lifecycle.FineTuningJob_CompletionReason;

/** Why the loop ended. `paused` and `stopped` leave a checkpoint and an unfinished job. */
export type LoopEnd =
  | { kind: 'done'; reason: lifecycle.FineTuningJob_CompletionReason }
  | { kind: 'paused' }
  | { kind: 'stopped' };

export type LoopHooks = {
  onStep(result: StepResult): Promise<void>;
  onEvaluation(loss: number, trainableTokens: number): Promise<void>;
  checkpoint(): Promise<void>;
};

export type LoopSettings = {
  totalSteps: number;
  checkpointInterval: number;
  evaluationInterval: number;
  earlyStop: lifecycle.EarlyStopSpec | undefined;
  maxTokens: number;
  maxDurationMs: number;
};

/** Steps in a row with gradients that are not finite after which going on is pointless. */
const maxSkippedInARow = 10;

/**
 * Trains step by step until the spec, the budget, the user or the process says stop. `stop` hands the job back after the current step; `signal`
 * aborts within it.
 */
export async function trainLoop(
  trainer: Trainer,
  inputs: JobInputs,
  plan: BatchPlan,
  settings: LoopSettings,
  progress: ProgressTracker,
  control: JobControl,
  hooks: LoopHooks,
  stop: AbortSignal,
  signal: AbortSignal,
): Promise<LoopEnd> {
  const within = AbortSignal.any([signal, control.cancelled]);
  let skippedInARow = 0;
  let next = trainer.step < settings.totalSteps ? readStep(inputs, plan, trainer.step) : undefined;

  const evaluate = async (): Promise<boolean> => {
    if (inputs.validation === undefined) return false;
    const rows = inputs.validation;
    const { loss, trainableTokens } = await withSpan('trainer.evaluate', {}, () => evaluateRows(trainer, rows, within));
    progress.addEvaluation(loss, settings.earlyStop?.minDelta ?? 0);
    await hooks.onEvaluation(loss, trainableTokens);
    const patience = settings.earlyStop?.patience ?? 0;
    return patience > 0 && progress.counters.evaluationsWithoutImprovement >= patience;
  };

  while (trainer.step < settings.totalSteps) {
    within.throwIfAborted();
    const micro = await next;
    if (micro === undefined) break;
    // The next rows are read while the engine works on these.
    next = trainer.step + 1 < settings.totalSteps ? readStep(inputs, plan, trainer.step + 1) : undefined;
    next?.catch(() => undefined);
    const result = await trainer.trainStep(micro, within);
    progress.addStep(result);
    skippedInARow = result.skipped ? skippedInARow + 1 : 0;
    if (skippedInARow >= maxSkippedInARow) {
      throw new Failure(
        'internal',
        `gradients were not finite in ${skippedInARow} steps in a row; use a lower learning rate`,
        { reason: 'NAN_LOSS' },
      );
    }
    await hooks.onStep(result);

    const isLast = trainer.step >= settings.totalSteps;
    const evaluateNow = !isLast && settings.evaluationInterval > 0 && trainer.step % settings.evaluationInterval === 0;
    if (evaluateNow && (await evaluate())) return { kind: 'done', reason: Reason.EARLY_STOP };
    if (stop.aborted || control.pauseRequested) {
      await hooks.checkpoint();
      return { kind: control.pauseRequested ? 'paused' : 'stopped' };
    }
    if (overBudget(settings, progress)) {
      await evaluate();
      return { kind: 'done', reason: Reason.BUDGET };
    }
    const due = settings.checkpointInterval > 0 && trainer.step % settings.checkpointInterval === 0;
    if (!isLast && (due || control.takeCheckpointRequest())) await hooks.checkpoint();
  }
  await evaluate();
  return { kind: 'done', reason: Reason.ALL_STEPS };
}

const overBudget = (settings: LoopSettings, progress: ProgressTracker): boolean =>
  (settings.maxTokens > 0 && progress.counters.tokenCount >= settings.maxTokens) ||
  (settings.maxDurationMs > 0 && progress.counters.trainDurationMs >= settings.maxDurationMs);

const readStep = (inputs: JobInputs, plan: BatchPlan, step: number) =>
  Promise.all(plan.step(step).map((rows) => readMicroBatch(inputs.train, rows)));
