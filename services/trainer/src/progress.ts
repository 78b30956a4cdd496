import type { EngineDevice, StepResult } from '@medmesh/engine';
import { lifecycle } from '@medmesh/proto';
import { describeDevice } from './device.ts';
import { bf16Peak } from './device-peak.ts';

/** Steps over which speed is averaged. */
const window = 20;

/** Follows a run: counters that survive a restart, and the speed of the newest steps. */
export type ProgressTracker = {
  readonly counters: lifecycle.TrainingCounters;
  addStep(result: StepResult): void;
  addEvaluation(loss: number, minDelta: number): { improved: boolean };
  snapshot(epoch: number): lifecycle.Progress;
};

/** Where a run's steps are computed. */
export type TrainingPlace = {
  device: EngineDevice;
  /** Bytes of the device's memory in use a moment ago; 0 on a CPU. Never waits. */
  usedMemory: () => number;
};

export function createProgress(
  totalSteps: number,
  startStep: number,
  resumed: lifecycle.TrainingCounters | undefined,
  { device, usedMemory }: TrainingPlace,
): ProgressTracker {
  const peak = bf16Peak(device);
  const onGpu = device.kind === 'cuda';
  const counters = lifecycle.TrainingCounters.fromPartial(resumed ?? {});
  const recent: { tokens: number; flops: number; durationMs: number }[] = [];
  let step = startStep;
  let last: StepResult | undefined;
  let validationLoss: number | undefined;
  let peakBytes = 0;

  return {
    counters,
    addStep(result) {
      step = result.step;
      last = result;
      peakBytes = Math.max(peakBytes, result.peakBytes);
      counters.tokenCount += result.tokens;
      counters.trainableTokenCount += result.trainableTokens;
      counters.trainDurationMs += Math.round(result.durationMs);
      if (result.skipped) counters.skippedStepCount += 1;
      recent.push({ tokens: result.tokens, flops: result.flops, durationMs: result.durationMs });
      if (recent.length > window) recent.shift();
    },
    addEvaluation(loss, minDelta) {
      validationLoss = loss;
      const improved = counters.bestValidationLoss === undefined || loss < counters.bestValidationLoss - minDelta;
      if (improved) counters.bestValidationLoss = loss;
      counters.evaluationsWithoutImprovement = improved ? 0 : counters.evaluationsWithoutImprovement + 1;
      return { improved };
    },
    snapshot(epoch) {
      const tokens = recent.reduce((sum, r) => sum + r.tokens, 0);
      const flops = recent.reduce((sum, r) => sum + r.flops, 0);
      const ms = recent.reduce((sum, r) => sum + r.durationMs, 0);
      const remainingMs = recent.length === 0 ? 0 : (ms / recent.length) * (totalSteps - step);
      return {
        step,
        totalSteps,
        epoch,
        tokenCount: counters.tokenCount,
        trainableTokenCount: counters.trainableTokenCount,
        tokensPerSecond: ms === 0 ? 0 : (tokens / ms) * 1000,
        loss: last?.loss ?? 0,
        gradNorm: last?.gradNorm ?? 0,
        learningRate: last?.learningRate ?? 0,
        validationLoss,
        peakMemoryBytes: peakBytes,
        remaining: { seconds: Math.floor(remainingMs / 1000), nanos: Math.round((remainingMs % 1000) * 1e6) },
        skippedStepCount: counters.skippedStepCount,
        device: describeDevice(device),
        modelFlopsUtilization: peak === undefined || ms === 0 ? undefined : flops / (peak * (ms / 1000)),
        plannedMemoryBytes: onGpu ? (last?.plan?.deviceBytes ?? 0) : 0,
        deviceMemoryBytes: onGpu ? usedMemory() : 0,
      };
    },
  };
}
