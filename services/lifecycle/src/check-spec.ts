import { Failure } from '@medmesh/errors';
import type { lifecycle } from '@medmesh/proto';
import { limits, targetModules, wholeModules } from './limits.ts';

type Violation = { field: string; description: string };

const isBetween = (value: number, low: number, high: number) => Number.isFinite(value) && value >= low && value <= high;

function* checkAdapter(adapter: lifecycle.AdapterSpec | undefined): Generator<Violation> {
  if (adapter?.kind?.$case === 'full') {
    yield {
      field: 'adapter_spec.full',
      description: 'full-parameter training yields no adapter; use the engine directly, or `lora`',
    };
  }
  if (adapter?.kind?.$case !== 'lora') return;
  const { rank, alpha, dropout, targetModules: targets, modulesToSave, layers } = adapter.kind.value;
  const at = 'adapter_spec.lora';
  if (rank !== undefined && !(Number.isInteger(rank) && isBetween(rank, 1, limits.maxRank))) {
    yield { field: `${at}.rank`, description: `is ${rank}; use a value from 1 to ${limits.maxRank}` };
  }
  if (alpha !== undefined && !(alpha > 0 && Number.isFinite(alpha)))
    yield { field: `${at}.alpha`, description: `is ${alpha}; use a value above 0` };
  if (!(dropout >= 0 && dropout < 1))
    yield { field: `${at}.dropout`, description: `is ${dropout}; use a value from 0 up to but not including 1` };
  const unknown = targets.filter((target) => !targetModules.some((known) => known === target));
  if (unknown.length > 0)
    yield {
      field: `${at}.target_modules`,
      description: `has ${unknown.join(', ')}; known are ${targetModules.join(', ')}`,
    };
  if (new Set(targets).size !== targets.length)
    yield { field: `${at}.target_modules`, description: 'names a module twice' };
  const unknownWhole = modulesToSave.filter((module) => !wholeModules.some((known) => known === module));
  if (unknownWhole.length > 0)
    yield {
      field: `${at}.modules_to_save`,
      description: `has ${unknownWhole.join(', ')}; known are ${wholeModules.join(', ')}`,
    };
  if (new Set(modulesToSave).size !== modulesToSave.length)
    yield { field: `${at}.modules_to_save`, description: 'names a module twice' };
  const badLayer = layers.find((layer) => layer < 0);
  if (badLayer !== undefined) yield { field: `${at}.layers`, description: `has ${badLayer}; layers count from 0` };
  if (new Set(layers).size !== layers.length) yield { field: `${at}.layers`, description: 'names a layer twice' };
}

function* checkOptimizer(optimizer: lifecycle.OptimizerSpec | undefined): Generator<Violation> {
  if (optimizer === undefined) return;
  if (!['', 'adamw', 'adamw_8bit'].includes(optimizer.kind)) {
    yield { field: 'optimizer.kind', description: `is ${JSON.stringify(optimizer.kind)}; use adamw_8bit or adamw` };
  }
  for (const [name, value] of [
    ['beta1', optimizer.beta1],
    ['beta2', optimizer.beta2],
  ] as const) {
    if (value !== undefined && !(value >= 0 && value < 1))
      yield { field: `optimizer.${name}`, description: `is ${value}; use a value from 0 up to but not including 1` };
  }
  if (optimizer.epsilon !== undefined && !isBetween(optimizer.epsilon, Number.MIN_VALUE, 1)) {
    yield { field: 'optimizer.epsilon', description: `is ${optimizer.epsilon}; use a value above 0 and at most 1` };
  }
  if (optimizer.weightDecay !== undefined && !isBetween(optimizer.weightDecay, 0, 1)) {
    yield { field: 'optimizer.weight_decay', description: `is ${optimizer.weightDecay}; use a value from 0 to 1` };
  }
  if (optimizer.maxGradNorm !== undefined && !isBetween(optimizer.maxGradNorm, 0, Number.MAX_VALUE)) {
    yield { field: 'optimizer.max_grad_norm', description: `is ${optimizer.maxGradNorm}; use 0 (off) or more` };
  }
}

function* checkSchedule(schedule: lifecycle.ScheduleSpec | undefined): Generator<Violation> {
  if (schedule === undefined) return;
  if (!['', 'linear', 'cosine', 'constant'].includes(schedule.kind)) {
    yield {
      field: 'schedule.kind',
      description: `is ${JSON.stringify(schedule.kind)}; use linear, cosine or constant`,
    };
  }
  if (schedule.learningRate !== undefined && !(schedule.learningRate > 0 && schedule.learningRate <= 1)) {
    yield {
      field: 'schedule.learning_rate',
      description: `is ${schedule.learningRate}; use a value above 0 and at most 1`,
    };
  }
  if (!isBetween(schedule.steps, 0, limits.maxSteps))
    yield { field: 'schedule.steps', description: `is ${schedule.steps}; use 1 to ${limits.maxSteps}` };
  if (!isBetween(schedule.epochs, 0, 10_000))
    yield { field: 'schedule.epochs', description: `is ${schedule.epochs}; use a value up to 10000` };
  if (schedule.steps > 0 && schedule.epochs > 0)
    yield { field: 'schedule.epochs', description: 'is set beside steps; set one of them' };
  if (schedule.warmupSteps !== undefined && !isBetween(schedule.warmupSteps, 0, limits.maxSteps)) {
    yield { field: 'schedule.warmup_steps', description: `is ${schedule.warmupSteps}; use 0 or more` };
  }
}

function* checkBatch(batch: lifecycle.BatchSpec | undefined): Generator<Violation> {
  if (batch === undefined) return;
  if (!isBetween(batch.microBatchRows, 0, limits.maxMicroBatchRows)) {
    yield {
      field: 'batch.micro_batch_rows',
      description: `is ${batch.microBatchRows}; use 1 to ${limits.maxMicroBatchRows}`,
    };
  }
  if (!isBetween(batch.gradientAccumulation, 0, limits.maxAccumulation)) {
    yield {
      field: 'batch.gradient_accumulation',
      description: `is ${batch.gradientAccumulation}; use 1 to ${limits.maxAccumulation}`,
    };
  }
  if (!isBetween(batch.packedTokens, 0, 4_194_304))
    yield { field: 'batch.packed_tokens', description: `is ${batch.packedTokens}; use 0 (off) to 4194304` };
  if (!isBetween(batch.neftuneAlpha, 0, 100))
    yield { field: 'batch.neftune_alpha', description: `is ${batch.neftuneAlpha}; use 0 (off) to 100` };
}

function* checkRest(job: lifecycle.FineTuningJob): Generator<Violation> {
  if (job.method !== undefined && job.method.$case !== 'supervised') {
    yield {
      field: `method.${job.method.$case === 'preference' ? 'preference' : 'group_policy'}`,
      description: 'is not implemented; use supervised',
    };
  }
  if (job.trainDatasets.length === 0)
    yield { field: 'train_datasets', description: 'is empty; name at least one dataset version' };
  if (job.trainDatasets.length > limits.maxDatasets)
    yield { field: 'train_datasets', description: `has ${job.trainDatasets.length}; at most ${limits.maxDatasets}` };
  for (const [i, mixture] of job.trainDatasets.entries()) {
    if (mixture.weight !== 0 && mixture.weight !== 1)
      yield { field: `train_datasets[${i}].weight`, description: `is ${mixture.weight}; only 1 works now` };
  }
  if (!['', 'bf16', 'f32'].includes(job.quantization?.computeDtype ?? '')) {
    yield {
      field: 'quantization.compute_dtype',
      description: `is ${JSON.stringify(job.quantization?.computeDtype)}; use bf16 or f32`,
    };
  }
  if (!['', 'cpu', 'cuda'].includes(job.resources?.device ?? '')) {
    yield { field: 'resources.device', description: `is ${JSON.stringify(job.resources?.device)}; use cpu or cuda` };
  }
  if ((job.evaluation?.intervalSteps ?? 0) < 0)
    yield { field: 'evaluation.interval_steps', description: 'is negative; use 0 (at the end) or more' };
  if ((job.earlyStop?.patience ?? 0) < 0)
    yield { field: 'early_stop.patience', description: 'is negative; use 0 (off) or more' };
  if ((job.checkpointing?.intervalSteps ?? 0) < 0)
    yield { field: 'checkpointing.interval_steps', description: 'is negative; use 0 (default) or more' };
  if ((job.checkpointing?.keep ?? 0) < 0)
    yield { field: 'checkpointing.keep', description: 'is negative; use 0 (default) or more' };
  if (Object.keys(job.labels).length > limits.maxLabels)
    yield { field: 'labels', description: `has more than ${limits.maxLabels} entries` };
  if (job.displayName.length > 63)
    yield { field: 'display_name', description: `has ${job.displayName.length} characters; at most 63` };
}

/** Failure `invalid_argument` with every fault of the job's spec that can be seen without looking anything up. */
export function checkSpec(job: lifecycle.FineTuningJob): void {
  const violations = [
    ...checkRest(job),
    ...checkAdapter(job.adapterSpec),
    ...checkOptimizer(job.optimizer),
    ...checkSchedule(job.schedule),
    ...checkBatch(job.batch),
  ].map(({ field, description }) => ({ field: `fine_tuning_job.${field}`, description }));
  if (violations.length === 0) return;
  const summary = violations.map((v) => `${v.field} ${v.description}`).join('; ');
  throw new Failure('invalid_argument', summary, { reason: 'FIELD_INVALID', fields: violations });
}
