import type { TrainingPlan } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { trainerOptions } from '@medmesh/jobs';
import { lifecycle, model } from '@medmesh/proto';

/** Size of the training data: rows, tokens, and tokens of the longest row. */
export type DataSize = { rows: number; tokens: number; longestRow: number };

/** Checkpoints that are on disk at once: as many as are kept, and the one being written. */
const checkpointsOnDisk = 3;

/**
 * What a job needs: the engine's own plan for a CPU, of the longest micro-batch that may come. A GPU's plan is made where the GPU is, and fits what it
 * may use; so only a job that names the CPU is refused for its budget here.
 * @param config the text of the base's config.json
 * @throws Failure `invalid_argument` for an adapter that the base has no place for.
 */
export async function estimate(
  spec: lifecycle.ResolvedSpec,
  base: model.Model,
  config: string,
  data: DataSize,
  resources: lifecycle.ResourceSpec | undefined,
): Promise<lifecycle.FineTuningEstimate> {
  // Loaded with the first estimate: nothing else here needs the engine.
  const { EngineError, planTraining } = await import('@medmesh/engine');
  const { batch } = spec;
  const quantizes =
    spec.quantization?.kind === lifecycle.QuantizationSpec_Kind.NF4_DOUBLE_QUANT &&
    base.quantization === model.Quantization.NONE;
  const planWithin = (memoryBudget: number): Promise<TrainingPlan> =>
    planTraining({
      model: { config, weightBytes: base.weightBytes },
      quantize: quantizes ? 'nf4' : 'none',
      trainer: { ...trainerOptions(spec), memoryBudget },
      tokens: batch?.packedTokens || data.longestRow * (batch?.microBatchRows ?? 1),
    });
  const blockers: string[] = [];
  const refused = (error: unknown): undefined => {
    if (!(error instanceof EngineError)) throw error;
    if (error.code === 'oom') blockers.push(error.message);
    else
      throw new Failure('invalid_argument', error.message, {
        reason: 'FIELD_INVALID',
        fields: [{ field: 'fine_tuning_job.adapter_spec', description: error.message }],
      });
  };
  const budget = resources?.device === 'cpu' ? resources.memoryBudgetBytes : 0;
  const plan = (await planWithin(budget).catch(refused)) ?? (await planWithin(0));

  const steps = spec.schedule?.steps ?? 0;
  const rowsPerStep = (batch?.microBatchRows ?? 1) * (batch?.gradientAccumulation ?? 1);
  const tokensPerStep = batch?.packedTokens
    ? batch.packedTokens * batch.gradientAccumulation
    : (data.tokens / Math.max(1, data.rows)) * rowsPerStep;
  const { gradients, optimizer } = plan.parts;
  return {
    memoryBytes: plan.deviceBytes,
    memoryBreakdown: { ...plan.parts },
    trainTokenCount: Math.round(tokensPerStep * steps),
    totalSteps: steps,
    trainableParameterCount: gradients / Float32Array.BYTES_PER_ELEMENT,
    diskBytes: gradients + checkpointsOnDisk * (gradients + optimizer),
    allowedToProceed: blockers.length === 0,
    blockers,
  };
}
