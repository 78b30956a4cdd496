import { lifecycle, model } from '@medmesh/proto';

/** Size of the training data: rows, tokens, and tokens of the longest row. */
export type DataSize = { rows: number; tokens: number; longestRow: number };

const lossChunkRows = 256;

/**
 * What a job needs, from shapes alone. The architecture is not read here, so the shape is guessed from the parameter count: good to about 30 %,
 * enough to refuse what cannot fit; the engine plans exactly before it allocates.
 */
export function estimate(
  spec: lifecycle.ResolvedSpec,
  base: model.Model,
  data: DataSize,
  memoryBudgetBytes: number,
): lifecycle.FineTuningEstimate {
  const lora = spec.adapterSpec?.kind?.$case === 'lora' ? spec.adapterSpec.kind.value : undefined;
  const rank = lora?.rank ?? 0;
  // params ≈ 12 · layers · hidden², layers ≈ hidden / 128 for the decoder families served here.
  const hidden = Math.max(64, Math.cbrt((base.parameterCount * 128) / 12));
  const layers = Math.max(1, hidden / 128);
  const share = (lora?.targetModules.length ?? 7) / 7;
  const chosen = lora?.layers ?? [];
  const adapted = chosen.length > 0 ? Math.min(chosen.length, layers) : layers;
  // Rows and columns of the seven matrices come to about 21 · hidden, their rows (DoRA's magnitudes) to about 11.
  const matrices = (rank * 21 + (lora?.dora ? 11 : 0)) * adapted * hidden * share;
  const wholeModules = (lora?.modulesToSave.length ?? 0) * base.vocabularySize * hidden;
  const adapterParameters = Math.round(matrices + wholeModules);

  const quantizedOnLoad =
    spec.quantization?.kind === lifecycle.QuantizationSpec_Kind.NF4_DOUBLE_QUANT &&
    base.quantization === model.Quantization.NONE;
  const embedding = base.vocabularySize * hidden * 2 * 2;
  const weights = quantizedOnLoad
    ? Math.round(Math.max(0, base.weightBytes - embedding) * 0.26 + embedding)
    : base.weightBytes;
  const batchTokens = spec.batch?.packedTokens || data.longestRow * (spec.batch?.microBatchRows ?? 1);
  const perTokenLayer = hidden * 4;
  const activations = Math.round(
    spec.batch?.noGradientCheckpointing
      ? batchTokens * layers * perTokenLayer * 12
      : batchTokens * (layers + 12) * perTokenLayer,
  );
  const breakdown = {
    weights,
    adapter: adapterParameters * 4,
    gradients: adapterParameters * 4,
    optimizer: adapterParameters * (spec.optimizer?.kind === 'adamw' ? 8 : 2),
    activations,
    logits: lossChunkRows * base.vocabularySize * 4,
  };
  const memoryBytes = Object.values(breakdown).reduce((sum, bytes) => sum + bytes, 0);
  const blockers =
    memoryBudgetBytes > 0 && memoryBytes > memoryBudgetBytes
      ? [`about ${memoryBytes} bytes are needed, the budget is ${memoryBudgetBytes}`]
      : [];
  const steps = spec.schedule?.steps ?? 0;
  const rowsPerStep = (spec.batch?.microBatchRows ?? 1) * (spec.batch?.gradientAccumulation ?? 1);
  const tokensPerStep = spec.batch?.packedTokens
    ? spec.batch.packedTokens * spec.batch.gradientAccumulation
    : (data.tokens / Math.max(1, data.rows)) * rowsPerStep;
  return {
    memoryBytes,
    memoryBreakdown: breakdown,
    trainTokenCount: Math.round(tokensPerStep * steps),
    totalSteps: steps,
    trainableParameterCount: adapterParameters,
    diskBytes: adapterParameters * 4 + 3 * adapterParameters * 6,
    allowedToProceed: blockers.length === 0,
    blockers,
  };
}
