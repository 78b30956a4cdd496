import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { connect, type MedmeshClient } from '@medmesh/client';
import {
  type DemoRow,
  demoBaseDir,
  demoHeldOutPath,
  demoLearningRate,
  demoQuestions,
  demoRowsPath,
  readDemoRows,
  scoreAnswers,
} from '@medmesh/demo';
import { Failure } from '@medmesh/errors';
import { lifecycle, model } from '@medmesh/proto';
import { traceId } from '@medmesh/telemetry';
import type { Command } from 'commander';
import { type CommandContext, type Environment, withContext } from '../context.ts';
import { type Mesh, readMesh, startMesh } from '../mesh/mesh.ts';
import { repositoryRoot } from '../mesh/paths.ts';
import { wholeNumber } from '../option-values.ts';
import { formatBytes, type Output } from '../output.ts';
import { createProgressBar } from '../progress.ts';
import { describeProgress, describeResult, followJob } from './finetune.ts';
import { streamAnswer } from './generate.ts';

type QuickstartOptions = { port: number; otlp?: string; questions: number; steps: number };

const ids = {
  base: 'demo-base',
  quantized: 'demo-base-nf4',
  dataset: 'demo-rows',
  job: 'demo',
  adapter: 'demo-adapter',
} as const;
const answerTokens = 192;
const askedAtOnce = 8;

/** Asks every question, several at a time, and counts exact answers. */
async function measure(
  context: CommandContext,
  client: MedmeshClient,
  label: string,
  rows: readonly DemoRow[],
  who: { base: string; adapter?: string },
) {
  const bar = createProgressBar(label, context.out.json);
  const replies: { response: string; answer: string }[] = [];
  const queue = [...rows];
  const worker = async () => {
    for (let row = queue.shift(); row !== undefined; row = queue.shift()) {
      const { answer } = await client.inference.answer(
        { question: row.Question },
        { ...who, sampling: { temperature: 0, maxTokens: answerTokens }, signal: context.signal },
      );
      replies.push({ response: answer, answer: row.answer });
      bar.update(replies.length, rows.length, `${scoreAnswers(replies).exact} exact`);
    }
  };
  try {
    await Promise.all(Array.from({ length: askedAtOnce }, worker));
  } finally {
    bar.stop();
  }
  return scoreAnswers(replies);
}

/** With --json the answers are not part of the result. */
const silent: Output = { json: false, say: () => undefined, result: () => undefined, write: () => undefined };

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;

/** The main job from end to end on the demonstration base and rows. */
async function runDemo(
  context: CommandContext,
  mesh: Mesh,
  client: MedmeshClient,
  options: QuickstartOptions,
): Promise<void> {
  const { out, signal } = context;
  const heldOut = (await readDemoRows(demoHeldOutPath)).slice(0, options.questions || undefined);

  out.say('\n1. import the demonstration base');
  const base = await client.models.import({ modelId: ids.base, uri: pathToFileURL(demoBaseDir).href }, { signal });
  out.say(
    `   ${base.modelType}, ${(base.parameterCount / 1e6).toFixed(2)} M parameters, ${formatBytes(base.weightBytes)}`,
  );

  out.say('2. quantize it to NF4 with double quantization');
  const quantized = await client.models.quantize(
    { sourceModel: base.name, modelId: ids.quantized, quantization: model.Quantization.NF4_DOUBLE_QUANT },
    { signal },
  );
  out.say(`   ${formatBytes(quantized.weightBytes)}, ${quantized.digest}`);

  out.say('3. build a dataset version from the demonstration rows');
  const upload = await client.datasets.upload(demoRowsPath);
  await client.datasets.ensure(ids.dataset);
  const version = await client.datasets.buildVersion(
    ids.dataset,
    {
      sources: [{ uri: upload.digest, fileName: upload.fileName }],
      model: quantized.name,
      maxTokens: Math.min(2048, quantized.contextLength),
    },
    { signal },
  );
  out.say(
    `   ${version.stats?.usedRowCount} rows, ${version.stats?.tokenCount} tokens, ${version.stats?.trainableTokenCount} of them trained on`,
  );

  const { steps } = options;
  out.say(
    `4. fine-tune: LoRA r 16, alpha 16, dropout 0, all seven projections; batch 1 × accumulation 2; ${steps} steps, 5 of warm-up, linear; learning rate ${demoLearningRate} (the tutorial's 2e-4 is for models a thousand times larger); 8-bit AdamW, weight decay 0.01; seed 3407`,
  );
  const created = await client.jobs.create(
    {
      source: { $case: 'baseModel', value: quantized.name },
      trainDatasets: [{ datasetVersion: version.name }],
      adapterSpec: { kind: { $case: 'lora', value: { rank: 16, alpha: 16, dropout: 0 } } },
      optimizer: { kind: 'adamw_8bit', weightDecay: 0.01 },
      schedule: { kind: 'linear', learningRate: demoLearningRate, warmupSteps: 5, steps },
      batch: { microBatchRows: 1, gradientAccumulation: 2 },
      publish: { adapterId: ids.adapter },
      seed: 3407,
    },
    { id: ids.job },
  );
  const job = await followJob(context, client, created.name);
  if (job.state !== lifecycle.FineTuningJob_State.SUCCEEDED)
    throw new Failure('internal', describeResult(job), { reason: 'JOB_FAILED' });
  if (job.progress !== undefined) out.say(`   ${describeProgress(job.progress)}`);

  const who = { base: quantized.name };
  const tuned = { base: quantized.name, adapter: job.adapter };
  out.say('5. ask base and adapter the same questions (a demonstration, not medical advice)');
  for (const question of demoQuestions) {
    out.say(`\n   Q: ${question}`);
    for (const [label, target] of [
      ['base', who],
      ['adapter', tuned],
    ] as const) {
      out.say(`   ${label}:`);
      await streamAnswer(
        out.json ? silent : out,
        client,
        { question },
        { ...target, sampling: { temperature: 0, maxTokens: answerTokens }, signal },
      );
    }
  }

  out.say(`\n6. exact answers on ${heldOut.length} held-out questions`);
  const before = await measure(context, client, '   base   ', heldOut, who);
  const after = await measure(context, client, '   adapter', heldOut, tuned);
  const summary = {
    base: {
      model: quantized.name,
      digest: quantized.digest,
      exact: before.exact,
      total: before.total,
      accuracy: before.accuracy,
    },
    adapter: { name: job.adapter, exact: after.exact, total: after.total, accuracy: after.accuracy },
    finalLoss: job.progress?.loss,
    traceId: traceId() ?? job.traceId,
    stateDir: mesh.record.stateDir,
  };
  out.result(
    summary,
    [
      `   base     ${before.exact} of ${before.total} (${percent(before.accuracy)})`,
      `   adapter  ${after.exact} of ${after.total} (${percent(after.accuracy)})`,
      '',
      `trace    ${summary.traceId} (job, training and first answer: one trace)`,
      `adapter  ${job.adapter}`,
      `state    ${mesh.record.stateDir} (objects, records, logs)`,
      `again    ./medmesh up --state ${mesh.record.stateDir} starts this mesh once more; then: ./medmesh chat --adapter ${ids.adapter}`,
    ].join('\n'),
  );
}

async function quickstart(context: CommandContext, options: QuickstartOptions, defaults: Environment): Promise<void> {
  const { out, signal } = context;
  const stateDir = join(repositoryRoot, '.medmesh', 'quickstart');
  const running = await readMesh(stateDir);
  if (running !== undefined) {
    throw new Failure(
      'failed_precondition',
      `a mesh runs in ${stateDir}; stop it by ./medmesh --state ${stateDir} down`,
      { reason: 'MESH_RUNNING' },
    );
  }
  // Each run is a first run.
  await rm(stateDir, { recursive: true, force: true });
  out.say('starting nats-server and six services on this machine');
  const mesh = await startMesh(
    {
      stateDir,
      gatewayPort: options.port,
      otlpEndpoint: options.otlp,
      uriRoots: [repositoryRoot],
      inherited: defaults.inherited,
      onProgress: (name) => out.write(`  ${name}`),
    },
    signal,
  );
  out.say(`\n  gateway on ${mesh.record.gateway}`);
  const client = connect({ address: mesh.record.gateway, project: context.global.project });
  try {
    await Promise.race([
      runDemo(context, mesh, client, options),
      mesh.failed.then(({ name, words }) => {
        throw new Failure('unavailable', `${name} ended by itself: ${words}`, { reason: 'SERVICE_FAILED' });
      }),
    ]);
  } finally {
    client.close();
    await mesh.stop();
  }
}

/** `quickstart`: start everything, fine-tune, serve, ask, measure, stop. */
export function addQuickstartCommand(program: Command, signal: AbortSignal, defaults: Environment): void {
  program
    .command('quickstart')
    .description('the whole thing once on this machine: fine-tune the demonstration base, serve it, ask it')
    .option('--port <port>', 'port of the gateway; 0 takes a free one', wholeNumber(0, 65_535), 7400)
    .option('--otlp <url>', 'OTLP/HTTP collector for traces', defaults.otlpEndpoint)
    .option('--questions <count>', 'held-out questions to measure with; 0: all', wholeNumber(0), 0)
    .option('--steps <n>', 'optimizer steps', wholeNumber(0), 60)
    .action(
      withContext(signal, (context, options: QuickstartOptions, _command: Command) =>
        quickstart(context, options, defaults),
      ),
    );
}
