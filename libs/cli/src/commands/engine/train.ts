import { randomBytes } from 'node:crypto';
import { rename, rm } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import type { LoraOptions, MicroBatch, Model, ModelInfo, StepResult, Trainer } from '@medmesh/engine';
import { type Command, Option } from 'commander';
import type { CommandContext } from '../../context.ts';
import { memorySize, number, wholeNumber, wholeNumbers } from '../../option-values.ts';
import { createProgressBar } from '../../progress.ts';
import { engineAction, reading } from './engine-action.ts';
import { refusal } from './input-file.ts';
import { addModelOptions, inspectModelFolder, loadModelAndAdapter, type ModelOptions } from './model-options.ts';
import { checkOutputFile, checkOutputFolder } from './output-path.ts';
import { readSequences, type SequencesFile } from './sequences-file.ts';

type TrainOptions = ModelOptions & {
  sequences: string;
  out: string;
  force: boolean;
  saveGrads?: string;
  steps: number;
  lr: number;
  optimizer: 'adamw' | 'adamw_8bit';
  weightDecay: number;
  clip: number;
  rank: number;
  alpha: number;
  rslora: boolean;
  dora: boolean;
  layers: number[];
  trainWhole: string[];
  target: string[];
  dropout?: number;
  seed: number;
  memoryBudget: number | 'auto';
};

/** The batch is computed some rows at a time, about so many tokens: loss and gradient are those of one large batch. */
const microBatchTokens = 4096;

function pack(rows: readonly Uint32Array[], masks: readonly Uint8Array[] | undefined): MicroBatch {
  const rowOffsets = new Uint32Array(rows.length + 1);
  rows.forEach((row, i) => {
    rowOffsets[i + 1] = (rowOffsets[i] ?? 0) + row.length;
  });
  const inputIds = new Uint32Array(rowOffsets.at(-1) ?? 0);
  const lossMask = new Uint8Array(inputIds.length).fill(1);
  rows.forEach((row, i) => {
    inputIds.set(row, rowOffsets[i]);
    if (masks?.[i] !== undefined) lossMask.set(masks[i], rowOffsets[i]);
  });
  return { inputIds, lossMask, rowOffsets };
}

/** The whole file as micro-batches of one step, in its order. */
function microBatches({ sequences, lossMask }: SequencesFile): MicroBatch[] {
  const batches: MicroBatch[] = [];
  let first = 0;
  let tokens = 0;
  sequences.forEach((row, i) => {
    if (i > first && tokens + row.length > microBatchTokens) {
      batches.push(pack(sequences.slice(first, i), lossMask?.slice(first, i)));
      first = i;
      tokens = 0;
    }
    tokens += row.length;
  });
  batches.push(pack(sequences.slice(first), lossMask?.slice(first)));
  return batches;
}

const labelCount = ({ sequences, lossMask }: SequencesFile): number =>
  sequences.reduce((sum, row, i) => {
    const mask = lossMask?.[i];
    return sum + (mask === undefined ? row.length - 1 : mask.subarray(1).reduce((n, mark) => n + mark, 0));
  }, 0);

const stepJson = (step: StepResult) => ({
  step: step.step,
  loss: step.loss,
  grad_norm: step.gradNorm,
  learning_rate: step.learningRate,
  tokens: step.tokens,
  trainable_tokens: step.trainableTokens,
  skipped: step.skipped,
  duration_ms: Math.round(step.durationMs * 1000) / 1000,
  peak_bytes: step.peakBytes,
});

/** The adapter to start from keeps its own shape; a new one has the shape the options give. */
async function loraOf(options: TrainOptions, info: ModelInfo, signal: AbortSignal): Promise<[Model, LoraOptions]> {
  const { model, adapter } = await loadModelAndAdapter(options, info, signal);
  if (adapter === undefined || options.adapter === undefined) {
    const { rank, alpha, rslora, dora, layers, trainWhole: modulesToSave } = options;
    const targetModules = options.target.length > 0 ? options.target : info.targetModules;
    const shape = { rank, alpha, rslora, dora, targetModules, layers, modulesToSave };
    return [model, { kind: 'lora', ...shape, dropout: options.dropout ?? 0 }];
  }
  const { rank, alpha, rslora, dora, targetModules, layers, modulesToSave } = adapter;
  const dropout = options.dropout ?? adapter.dropout;
  await adapter.close();
  const shape = { rank, alpha, rslora, dora, targetModules, layers, modulesToSave };
  return [model, { kind: 'lora', ...shape, dropout, initAdapterDir: options.adapter }];
}

/** Where it trains and how memory is spent there, for people: nothing for a CPU, unless a GPU was left aside. */
function describePlace({ device, noGpuBecause, plan }: Trainer): string {
  if (noGpuBecause !== '') return `trains on ${device}, not on the GPU: ${noGpuBecause}\n`;
  return device.startsWith('cpu') ? '' : `trains on ${device}\n${plan?.table ?? ''}`;
}

async function runSteps(
  { out, signal }: CommandContext,
  trainer: Trainer,
  options: TrainOptions,
  micro: MicroBatch[],
  gradientsPath: string | undefined,
): Promise<void> {
  // The lines are the progress where they can be seen.
  const bar = createProgressBar('train', out.json || process.stdout.isTTY === true, { onlyOnTerminal: true });
  try {
    for (let i = 0; i < options.steps; i += 1) {
      const step = await trainer.trainStep(micro, signal);
      process.stdout.write(`${JSON.stringify(stepJson(step))}\n`);
      if (i === 0 && gradientsPath !== undefined) await trainer.saveGradients(gradientsPath);
      bar.update(step.step, options.steps, `step ${step.step} of ${options.steps}, loss ${step.loss.toFixed(4)}`);
    }
    signal.throwIfAborted();
  } finally {
    bar.stop();
  }
}

async function train(context: CommandContext, options: TrainOptions): Promise<void> {
  const { signal } = context;
  const inputs = [options.sequences, options.model, ...(options.adapter === undefined ? [] : [options.adapter])];
  await checkOutputFolder(options.out, 'adapter_config.json', { force: options.force, inputs });
  if (options.saveGrads !== undefined) await checkOutputFile(options.saveGrads, { force: options.force, inputs });
  const info = await inspectModelFolder(options.model);
  const file = await readSequences(options.sequences, info.vocabSize);
  if (labelCount(file) === 0)
    throw refusal(
      `${options.sequences} leaves no token to be predicted: the first of a sequence has nothing before it, and loss_mask leaves out the rest`,
    );
  const micro = microBatches(file);
  const [model, lora] = await loraOf(options, info, signal);
  // Everything appears at the end: an interrupted run leaves neither adapter nor gradients.
  const gradients = options.saveGrads === undefined ? undefined : resolve(options.saveGrads);
  const staged =
    gradients === undefined
      ? undefined
      : join(dirname(gradients), `.${basename(gradients)}.staging-${randomBytes(4).toString('hex')}`);
  try {
    const trainer = await reading(
      model.createTrainer({
        method: lora,
        optimizer: options.optimizer,
        weightDecay: options.weightDecay,
        maxGradNorm: options.clip,
        schedule: { kind: 'constant', warmupSteps: 0, totalSteps: options.steps, learningRate: options.lr },
        seed: options.seed,
        memoryBudget: options.memoryBudget,
        microBatchTokens: Math.max(...micro.map(({ inputIds }) => inputIds.length)),
      }),
    );
    process.stderr.write(describePlace(trainer));
    await runSteps(context, trainer, options, micro, staged);
    await trainer.saveAdapter(options.out, { baseModelName: resolve(options.model) });
    if (staged !== undefined && gradients !== undefined) await rename(staged, gradients);
  } finally {
    if (staged !== undefined) await rm(staged, { force: true });
    await model.close();
  }
}

/** `engine train`: LoRA or QLoRA steps on one batch. */
export function addTrainCommand(group: Command, signal: AbortSignal): void {
  const own = (flags: string, description: string) => new Option(flags, description).conflicts('adapter');
  addModelOptions(
    group.command('train').description('train a LoRA adapter: every step takes the whole file as one batch'),
    'PEFT adapter folder to start from; default: a new adapter',
  )
    .requiredOption(
      '--sequences <file>',
      '{"sequences": [[ids…], …], "loss_mask": [[0 or 1…], …]}; the mask is optional',
    )
    .requiredOption('--out <folder>', 'new folder: the trained adapter as PEFT loads it')
    .option('--save-grads <file>', 'safetensors file: the first step’s gradients, before clipping, under PEFT’s names')
    .option('--steps <n>', 'optimizer steps', wholeNumber(1), 1)
    .option('--lr <x>', 'learning rate, the same for every step', number(0), 2e-4)
    .addOption(
      new Option('--optimizer <kind>', 'adamw: torch’s; adamw_8bit: bitsandbytes’ blockwise 8-bit')
        .choices(['adamw', 'adamw_8bit'])
        .default('adamw'),
    )
    .option('--weight-decay <x>', 'decoupled weight decay', number(0), 0.01)
    .option('--clip <norm>', 'largest gradient norm; 0: no clipping', number(0), 1)
    .option('--dropout <p>', 'LoRA dropout (default: the adapter’s own; 0 for a new one)', number(0, 1))
    .option(
      '--memory-budget <size>',
      'memory that the run may take, weights included, as 24GiB; auto: on a GPU what is free, on a CPU no limit',
      memorySize,
      'auto' as const,
    )
    .option('--seed <n>', 'seed of a new adapter and of dropout', wholeNumber(0), 3407)
    .addOption(own('--rank <r>', 'rank of a new adapter').argParser(wholeNumber(1, 4096)).default(16))
    .addOption(own('--alpha <a>', 'alpha of a new adapter').argParser(number(0)).default(16))
    .addOption(own('--rslora', 'a new adapter scales by alpha / sqrt(r)').default(false))
    .addOption(own('--dora', 'a new adapter trains magnitudes beside directions').default(false))
    .addOption(
      own('--layers <numbers>', 'layers of a new adapter, as 1,2,3; default: all')
        .argParser(wholeNumbers)
        .default([], 'all'),
    )
    .addOption(
      own('--train-whole <modules...>', 'modules a new adapter trains whole: embed_tokens, lm_head').default(
        [],
        'none',
      ),
    )
    .addOption(own('--target <modules...>', 'projections of a new adapter; default: all seven').default([], 'all'))
    .option('--force', 'replace an earlier result', false)
    .addHelpText(
      'after',
      '\nAdamW with betas 0.9 and 0.999, epsilon 1e-8; constant learning rate, no warm-up. The loss is the mean over all tokens that are\n' +
        'trained on: every token but the first of its sequence, or those of them that loss_mask marks with 1.\n' +
        'Prints a JSON line for every step, with or without --json: {"step", "loss", "grad_norm", "learning_rate", …}; grad_norm is before clipping.',
    )
    .action(engineAction(signal, (context, options: TrainOptions) => train(context, options)));
}
