import type { LoraOptions, TrainerOptions } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import type { lifecycle } from '@medmesh/proto';

function loraOptions(spec: lifecycle.ResolvedSpec, initAdapterDir: string | undefined): LoraOptions {
  const lora = spec.adapterSpec?.kind?.$case === 'lora' ? spec.adapterSpec.kind.value : undefined;
  if (lora === undefined)
    throw new Failure('invalid_argument', 'only LoRA adapters can be trained as jobs', { reason: 'FIELD_INVALID' });
  return {
    kind: 'lora',
    rank: lora.rank ?? 16,
    alpha: lora.alpha ?? 16,
    dropout: lora.dropout,
    rslora: lora.rslora,
    dora: lora.dora,
    layers: lora.layers,
    modulesToSave: lora.modulesToSave,
    targetModules: lora.targetModules,
    ...(initAdapterDir === undefined ? {} : { initAdapterDir }),
  };
}

/**
 * A resolved spec as the engine takes it, for planning and for training; memory is said by who calls.
 * @throws Failure `invalid_argument` for what is not LoRA.
 */
export function trainerOptions(spec: lifecycle.ResolvedSpec, initAdapterDir?: string): TrainerOptions {
  const { optimizer, schedule, batch } = spec;
  if (schedule === undefined)
    throw new Failure('internal', 'the job has no resolved spec', { reason: 'RECORD_INVALID' });
  return {
    method: loraOptions(spec, initAdapterDir),
    optimizer: optimizer?.kind === 'adamw' ? 'adamw' : 'adamw_8bit',
    beta1: optimizer?.beta1 ?? 0.9,
    beta2: optimizer?.beta2 ?? 0.999,
    epsilon: optimizer?.epsilon ?? 1e-8,
    weightDecay: optimizer?.weightDecay ?? 0,
    maxGradNorm: optimizer?.maxGradNorm ?? 0,
    schedule: {
      kind: schedule.kind === 'cosine' || schedule.kind === 'constant' ? schedule.kind : 'linear',
      warmupSteps: schedule.warmupSteps ?? 0,
      totalSteps: schedule.steps,
      learningRate: schedule.learningRate ?? 2e-4,
    },
    seed: spec.seed,
    gradientCheckpointing: !(batch?.noGradientCheckpointing ?? false),
    neftuneAlpha: batch?.neftuneAlpha ?? 0,
  };
}
