import { lifecycle, model } from '@medmesh/proto';
import { targetModules, wholeModules } from './limits.ts';

/** The parts of a spec, with every default written out: the tutorial's settings. */
export type FilledSpec = {
  adapterSpec: lifecycle.AdapterSpec;
  quantization: lifecycle.QuantizationSpec;
  optimizer: lifecycle.OptimizerSpec;
  schedule: lifecycle.ScheduleSpec;
  batch: lifecycle.BatchSpec;
  evaluation: lifecycle.EvaluationSpec;
  earlyStop: lifecycle.EarlyStopSpec;
  seed: number;
};

const orElse = <T extends string | number>(value: T | undefined, fallback: T): T =>
  value === undefined || value === 0 || value === '' ? fallback : value;

/** The way the base is held: asked for, or as stored, or quantized on load where it is stored in 16 bits. */
function quantizationKind(
  asked: lifecycle.QuantizationSpec | undefined,
  base: model.Model,
): lifecycle.QuantizationSpec_Kind {
  const Kind = lifecycle.QuantizationSpec_Kind;
  if (asked !== undefined && asked.kind !== Kind.UNSPECIFIED) return asked.kind;
  return base.quantization === model.Quantization.NONE ? Kind.NF4_DOUBLE_QUANT : Kind.NONE;
}

export function fillDefaults(job: lifecycle.FineTuningJob, base: model.Model): FilledSpec {
  const lora =
    job.adapterSpec?.kind?.$case === 'lora' ? job.adapterSpec.kind.value : lifecycle.LoraSpec.fromPartial({});
  const { optimizer, schedule, batch } = job;
  const epochs = schedule?.epochs ?? 0;
  return {
    adapterSpec: {
      kind: {
        $case: 'lora',
        value: {
          rank: lora.rank ?? 16,
          alpha: lora.alpha ?? 16,
          dropout: lora.dropout,
          // In one order, so that equal sets give equal specs.
          targetModules: targetModules.filter(
            (name) => lora.targetModules.length === 0 || lora.targetModules.includes(name),
          ),
          rslora: lora.rslora,
          dora: lora.dora,
          modulesToSave: wholeModules.filter((name) => lora.modulesToSave.includes(name)),
          layers: [...lora.layers].sort((a, b) => a - b),
        },
      },
    },
    quantization: {
      kind: quantizationKind(job.quantization, base),
      computeDtype: orElse(job.quantization?.computeDtype, 'bf16'),
    },
    optimizer: {
      kind: orElse(optimizer?.kind, 'adamw_8bit'),
      beta1: optimizer?.beta1 ?? 0.9,
      beta2: optimizer?.beta2 ?? 0.999,
      epsilon: optimizer?.epsilon ?? 1e-8,
      weightDecay: optimizer?.weightDecay ?? 0.01,
      maxGradNorm: optimizer?.maxGradNorm ?? 1,
    },
    schedule: {
      kind: orElse(schedule?.kind, 'linear'),
      learningRate: schedule?.learningRate ?? 2e-4,
      warmupSteps: schedule?.warmupSteps ?? 5,
      steps: epochs > 0 ? 0 : orElse(schedule?.steps, 60),
      epochs,
    },
    batch: {
      microBatchRows: orElse(batch?.microBatchRows, 1),
      gradientAccumulation: orElse(batch?.gradientAccumulation, 2),
      packedTokens: batch?.packedTokens ?? 0,
      keepOrder: batch?.keepOrder ?? false,
      noGradientCheckpointing: batch?.noGradientCheckpointing ?? false,
      neftuneAlpha: batch?.neftuneAlpha ?? 0,
    },
    evaluation: { intervalSteps: job.evaluation?.intervalSteps ?? 0 },
    earlyStop: { patience: job.earlyStop?.patience ?? 0, minDelta: job.earlyStop?.minDelta ?? 0 },
    seed: job.seed ?? 3407,
  };
}
