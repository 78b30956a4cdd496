import { lifecycle, model } from '@medmesh/proto';
import { describe, expect, test } from 'vitest';
import { estimate } from './estimate.ts';
import { targetModules } from './limits.ts';

// Qwen2.5-1.5B's shape.
const shape = { hidden_size: 1536, intermediate_size: 8960, num_hidden_layers: 28, num_attention_heads: 12 };
const config = JSON.stringify({
  architectures: ['Qwen2ForCausalLM'],
  model_type: 'qwen2',
  ...shape,
  num_key_value_heads: 2,
  vocab_size: 151_936,
  max_position_embeddings: 32_768,
  rms_norm_eps: 1e-6,
  rope_theta: 1e6,
  hidden_act: 'silu',
  tie_word_embeddings: true,
});
const base = model.Model.fromPartial({
  name: 'projects/p/models/m',
  weightBytes: 2 * 1_543_714_304,
  quantization: model.Quantization.NONE,
});
type Lora = Parameters<typeof lifecycle.LoraSpec.fromPartial>[0];
const specOf = (lora: Lora) =>
  lifecycle.ResolvedSpec.fromPartial({
    adapterSpec: {
      kind: { $case: 'lora', value: { rank: 16, alpha: 16, targetModules: [...targetModules], ...lora } },
    },
    quantization: { kind: lifecycle.QuantizationSpec_Kind.NF4_DOUBLE_QUANT },
    schedule: { steps: 60 },
    batch: { microBatchRows: 1, gradientAccumulation: 2 },
    seed: 1,
  });
const estimateOf = (lora: Lora, resources?: lifecycle.ResourceSpec) =>
  estimate(specOf(lora), base, config, { rows: 10, tokens: 1000, longestRow: 200 }, resources);
const trained = async (lora: Lora) => (await estimateOf(lora)).trainableParameterCount;

// Columns and rows of q, k, v, o, gate, up, down.
const matrices = [
  [1536, 1536],
  [1536, 256],
  [1536, 256],
  [1536, 1536],
  [1536, 8960],
  [1536, 8960],
  [8960, 1536],
] as const;
const perLayer = matrices.reduce((sum, [columns, rows]) => sum + 16 * (columns + rows), 0);

describe('an estimate', () => {
  test('counts what is trained, exactly', async () => {
    expect(await trained({})).toBe(28 * perLayer);
    expect(await trained({ layers: [0, 27] })).toBe(2 * perLayer);
    expect(await trained({ targetModules: ['q_proj'] })).toBe(28 * 16 * 3072);
    const rows = matrices.reduce((sum, [, count]) => sum + count, 0);
    expect(await trained({ dora: true })).toBe(28 * (perLayer + rows));
    expect(await trained({ modulesToSave: ['lm_head'] })).toBe(28 * perLayer + 151_936 * 1536);
  });

  test('is the sum of its parts, with the linears in NF4', async () => {
    const { memoryBytes, memoryBreakdown, totalSteps, trainTokenCount } = await estimateOf({});
    expect(Object.values(memoryBreakdown).reduce((sum, bytes) => sum + bytes, 0)).toBe(memoryBytes);
    const linears = 28 * matrices.reduce((sum, [columns, rows]) => sum + columns * rows, 0);
    const { weights = 0 } = memoryBreakdown;
    expect(weights / (linears * (0.5 + 1 / 64) + 2 * 151_936 * 1536)).toBeCloseTo(1, 2);
    expect([totalSteps, trainTokenCount]).toEqual([60, 12_000]);
  });

  test('refuses a budget that a CPU cannot meet with the numbers, and leaves a GPU’s to its planner', async () => {
    const tight = { device: 'cpu', memoryBudgetBytes: 500 * 2 ** 20 };
    const refused = await estimateOf({}, tight);
    expect(refused.allowedToProceed).toBe(false);
    expect(refused.blockers).toEqual([expect.stringContaining(`the memory budget is ${tight.memoryBudgetBytes}`)]);
    expect((await estimateOf({}, { ...tight, device: 'cuda' })).allowedToProceed).toBe(true);
  });

  test('finds no place for layers that the base does not have', async () => {
    await expect(estimateOf({ layers: [28] })).rejects.toMatchObject({ code: 'invalid_argument' });
  });
});
