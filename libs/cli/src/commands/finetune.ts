import { randomUUID } from 'node:crypto';
import type { MedmeshClient } from '@medmesh/client';
import { Failure } from '@medmesh/errors';
import { lifecycle } from '@medmesh/proto';
import { type Command, Option } from 'commander';
import { type CommandContext, withContext } from '../context.ts';
import { number, wholeNumber, wholeNumbers } from '../option-values.ts';
import { formatBytes, formatSeconds } from '../output.ts';
import { createProgressBar } from '../progress.ts';

type FinetuneOptions = {
  model: string;
  dataset: string[];
  validationDataset?: string;
  id?: string;
  adapterId?: string;
  rank: number;
  alpha: number;
  dropout: number;
  target: string[];
  rslora: boolean;
  dora: boolean;
  trainWhole: string[];
  layers: number[];
  neftune: number;
  steps: number;
  epochs: number;
  learningRate: number;
  warmup: number;
  schedule: string;
  batch: number;
  accumulate: number;
  pack: number;
  optimizer: string;
  weightDecay: number;
  clip: number;
  dtype: string;
  seed: number;
  evalEvery: number;
  patience: number;
  checkpointEvery: number;
  checkpointing: boolean;
  dryRun: boolean;
  detach: boolean;
};

/** The newest version of a dataset that is named by its id. */
async function versionOf(client: MedmeshClient, name: string): Promise<string> {
  if (name.includes('/versions/')) return name;
  const { latestVersion } = await client.datasets.get(name);
  if (latestVersion === '')
    throw new Failure('failed_precondition', `dataset ${name} has no ready version; build one by dataset create`, {
      reason: 'DATASET_NOT_READY',
    });
  return latestVersion;
}

async function jobOf(
  client: MedmeshClient,
  o: FinetuneOptions,
): Promise<Parameters<typeof lifecycle.FineTuningJob.fromPartial>[0]> {
  const { epochs } = o;
  return {
    source: { $case: 'baseModel', value: client.models.name(o.model) },
    trainDatasets: await Promise.all(
      o.dataset.map(async (name) => ({ datasetVersion: await versionOf(client, name) })),
    ),
    validationDataset: o.validationDataset === undefined ? '' : await versionOf(client, o.validationDataset),
    method: { $case: 'supervised', value: {} },
    adapterSpec: {
      kind: {
        $case: 'lora',
        value: {
          rank: o.rank,
          alpha: o.alpha,
          dropout: o.dropout,
          targetModules: o.target,
          rslora: o.rslora,
          dora: o.dora,
          modulesToSave: o.trainWhole,
          layers: o.layers,
        },
      },
    },
    optimizer: {
      kind: o.optimizer,
      weightDecay: o.weightDecay,
      maxGradNorm: o.clip,
    },
    schedule: {
      kind: o.schedule,
      learningRate: o.learningRate,
      warmupSteps: o.warmup,
      steps: epochs > 0 ? 0 : o.steps,
      epochs,
    },
    batch: {
      microBatchRows: o.batch,
      gradientAccumulation: o.accumulate,
      packedTokens: o.pack,
      noGradientCheckpointing: !o.checkpointing,
      neftuneAlpha: o.neftune,
    },
    quantization: { computeDtype: o.dtype },
    evaluation: { intervalSteps: o.evalEvery },
    earlyStop: { patience: o.patience },
    checkpointing: { intervalSteps: o.checkpointEvery },
    publish: { adapterId: o.adapterId ?? '' },
    seed: o.seed,
  };
}

const durationSeconds = (d: { seconds: number; nanos: number } | undefined) =>
  d === undefined ? 0 : d.seconds + d.nanos / 1e9;

/** A GPU's use, where its peak is known. */
const describeUtilization = ({ modelFlopsUtilization: share }: lifecycle.Progress): string =>
  share === undefined ? '' : ` MFU ${(100 * share).toFixed(1)} %`;

/** One line of a run's numbers. */
export const describeProgress = (p: lifecycle.Progress): string =>
  `step ${p.step}/${p.totalSteps} loss ${p.loss.toFixed(4)} lr ${p.learningRate.toExponential(1)} ${p.tokensPerSecond.toFixed(0)} tok/s${describeUtilization(p)} left ${formatSeconds(durationSeconds(p.remaining))}`;

/** Follows a job to its end with a bar; with --json one line an event. Ctrl-C leaves the job running. */
export async function followJob(
  context: CommandContext,
  client: MedmeshClient,
  name: string,
): Promise<lifecycle.FineTuningJob> {
  const { out, signal } = context;
  const bar = createProgressBar('train', out.json);
  try {
    return await client.jobs.waitFor(name, {
      signal,
      onEvent(event) {
        if (out.json) {
          process.stdout.write(`${JSON.stringify(lifecycle.JobEvent.toJSON(event))}\n`);
          return;
        }
        if (event.payload?.$case === 'metrics' && event.payload.value.progress !== undefined) {
          const { progress } = event.payload.value;
          bar.update(progress.step, progress.totalSteps, describeProgress(progress));
        }
      },
    });
  } finally {
    bar.stop();
  }
}

/** What a job came to, for people. */
export function describeResult(job: lifecycle.FineTuningJob): string {
  const p = job.progress;
  const lines = [`${job.name}: ${lifecycle.fineTuningJob_StateToJSON(job.state).replace('STATE_', '')}`];
  if (p !== undefined && p.step > 0) {
    lines.push(
      `  ${p.step} steps, ${p.tokenCount} tokens (${p.trainableTokenCount} trained on), final loss ${p.loss.toFixed(4)}${p.validationLoss === undefined ? '' : `, validation loss ${p.validationLoss.toFixed(4)}`}`,
    );
    if (p.plannedMemoryBytes > 0)
      lines.push(
        `  on ${p.device}: planned ${formatBytes(p.plannedMemoryBytes)}, ${formatBytes(p.deviceMemoryBytes)} of its memory in use`,
      );
  }
  if (job.adapter !== '') lines.push(`  adapter ${job.adapter}`);
  if (job.error !== undefined) lines.push(`  ${job.error.message}`);
  lines.push(`  trace ${job.traceId}`);
  return lines.join('\n');
}

const describeEstimate = (e: lifecycle.FineTuningEstimate | undefined): string =>
  e === undefined
    ? ''
    : `about ${formatBytes(e.memoryBytes)} of memory, ${e.totalSteps} steps over ${e.trainTokenCount} tokens, ${(e.trainableParameterCount / 1e6).toFixed(2)} M trained weights`;

/** `finetune`: create a job and watch it. */
export function addFinetuneCommand(program: Command, signal: AbortSignal): void {
  program
    .command('finetune')
    .description('fine-tune a model on a dataset and watch it')
    .requiredOption('--model <model>', 'model to fine-tune')
    .requiredOption('--dataset <dataset...>', 'dataset id (its newest version) or version name')
    .option('--validation-dataset <dataset>', 'rows to evaluate on; default: the validation split')
    .option('--id <id>', 'id of the job')
    .option('--adapter-id <id>', 'id of the adapter; default: the job’s id')
    .option('--rank <r>', 'LoRA rank', wholeNumber(0), 16)
    .option('--alpha <a>', 'LoRA alpha', number(), 16)
    .option('--dropout <p>', 'LoRA dropout', number(), 0)
    .option('--target <modules...>', 'projections to adapt; default: all seven', [])
    .option('--rslora', 'scale by alpha / sqrt(r)', false)
    .option('--dora', 'train magnitudes beside directions (DoRA)', false)
    .option('--train-whole <modules...>', 'modules to train whole: embed_tokens, lm_head', [])
    .option('--layers <numbers>', 'layers to adapt, from 0, as 1,2,3; default: all', wholeNumbers, [])
    .option('--neftune <alpha>', 'noise on the embeddings (NEFTune); 0: none', number(), 0)
    .option('--steps <n>', 'optimizer steps', wholeNumber(0), 60)
    .option('--epochs <n>', 'passes over the rows, instead of steps', number(), 0)
    .option('--learning-rate <lr>', 'highest learning rate', number(), 2e-4)
    .option('--warmup <n>', 'warm-up steps', wholeNumber(0), 5)
    .addOption(
      new Option('--schedule <kind>', 'course of the learning rate')
        .choices(['linear', 'cosine', 'constant'])
        .default('linear'),
    )
    .option('--batch <rows>', 'rows in a micro-batch', wholeNumber(0), 1)
    .option('--accumulate <n>', 'micro-batches for one step', wholeNumber(0), 2)
    .option('--pack <tokens>', 'pack rows into micro-batches of so many tokens; 0: no packing', wholeNumber(0), 0)
    .addOption(new Option('--optimizer <kind>', 'optimizer').choices(['adamw_8bit', 'adamw']).default('adamw_8bit'))
    .option('--weight-decay <x>', 'weight decay', number(), 0.01)
    .option('--clip <norm>', 'largest gradient norm; 0: no clipping', number(), 1)
    .addOption(new Option('--dtype <dtype>', 'operands of matrix products').choices(['bf16', 'f32']).default('bf16'))
    .option('--seed <n>', 'seed', wholeNumber(0), 3407)
    .option('--eval-every <n>', 'evaluate every so many steps; 0: at the end', wholeNumber(0), 0)
    .option('--patience <n>', 'stop after so many evaluations without improvement; 0: never', wholeNumber(0), 0)
    .option('--checkpoint-every <n>', 'checkpoint every so many steps; 0: chosen by length', wholeNumber(0), 0)
    .option('--no-checkpointing', 'keep activations instead of computing them again')
    .option('--dry-run', 'check everything and say what it would need', false)
    .option('--detach', 'do not watch', false)
    .action(
      withContext(signal, async (context, options: FinetuneOptions, _command: Command) => {
        const client = await context.client();
        const job = await client.jobs.create(await jobOf(client, options), {
          ...(options.id === undefined ? {} : { id: options.id }),
          requestId: options.dryRun ? '' : randomUUID(),
          validateOnly: options.dryRun,
        });
        if (options.dryRun || options.detach) {
          context.out.result(
            lifecycle.FineTuningJob.toJSON(job),
            options.dryRun ? describeEstimate(job.estimate) : job.name,
          );
          return;
        }
        context.out.say(`${job.name}: ${describeEstimate(job.estimate)}`);
        const ended = await followJob(context, client, job.name).catch((error: unknown) => {
          if (signal.aborted)
            context.out.say(`\nthe job goes on; watch it by ./medmesh jobs watch ${job.name.split('/').at(-1)}`);
          throw error;
        });
        context.out.result(lifecycle.FineTuningJob.toJSON(ended), describeResult(ended));
        if (ended.state !== lifecycle.FineTuningJob_State.SUCCEEDED) process.exitCode = 1;
      }),
    );
}
