import { resolve } from 'node:path';
import { Failure } from '@medmesh/errors';
import type { Command } from 'commander';
import type { Spread } from '../bench/percentiles.ts';
import { type Load, type LoadReport, runLoad, warmUpOf } from '../bench/serve.ts';
import { type SoakReport, soak } from '../bench/soak.ts';
import type { SoakModel } from '../bench/soak-requests.ts';
import { type CommandContext, withContext } from '../context.ts';
import { memorySize, number, wholeNumber, wholeNumbers } from '../option-values.ts';
import { table } from '../output.ts';

type ServeOptions = {
  model: string;
  adapter: string[];
  rate?: number[];
  concurrency: number[];
  promptTokens: number[];
  newTokens: number[];
  sharedTokens: number;
  requests: number;
  seed: number;
  soak?: number;
  engine?: string;
  engineDevice: string;
  engineMemoryBudget: number | 'auto';
};

const ms = (spread: Spread | undefined, share: 'p50' | 'p99') =>
  spread === undefined ? '–' : spread[share].toFixed(1);

function describe(reports: readonly LoadReport[]): string {
  const rows = reports.map((r) => [
    r.arrival.kind === 'rate' ? `${r.arrival.perSecond}/s` : `${r.arrival.count} at once`,
    `${r.promptTokens} + ${r.newTokens}`,
    String(r.adapters),
    `${r.answered}${Object.entries(r.failed)
      .map(([reason, count]) => `, ${count} ${reason}`)
      .join('')}`,
    r.newTokensPerSecond.toFixed(1),
    `${ms(r.timeToFirstTokenMs, 'p50')} / ${ms(r.timeToFirstTokenMs, 'p99')}`,
    `${ms(r.timePerOutputTokenMs, 'p50')} / ${ms(r.timePerOutputTokenMs, 'p99')}`,
    `${(100 * r.cachedShare).toFixed(0)} %`,
    r.engineTokensPerSecond === undefined
      ? '–'
      : `${r.engineTokensPerSecond.toFixed(1)} (${(r.newTokensPerSecond / r.engineTokensPerSecond).toFixed(2)})`,
  ]);
  const head = [
    'arrival',
    'tokens',
    'adapters',
    'answered',
    'tok/s',
    'TTFT ms p50 / p99',
    'TPOT ms p50 / p99',
    'cached',
    'engine alone tok/s (share)',
  ];
  return table(head, rows);
}

const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

function describeSoak(report: SoakReport): string {
  const statuses = Object.entries(report.ended).map(([kind, counts]) => [
    kind,
    Object.entries(counts)
      .map(([status, count]) => `${count} ${status}`)
      .join(', '),
  ]);
  const { warm, end } = report.residentBytes;
  return [
    table(['requests', 'ended'], statuses),
    `${report.requests} requests in ${report.seconds.toFixed(0)} s; ${report.leftRunning} left running, ${report.leakedBlocks} cache blocks held`,
    `memory of the server ${mib(warm)} after the warm-up, ${mib(end)} at the end`,
    ...Object.entries(report.wrong).map(([what, count]) => `wrong, ${count} times: ${what}`),
  ].join('\n');
}

/** The mix of soak.ts for so many minutes. Fails when the server did what it must not do. */
async function serveSoak(context: CommandContext, o: ServeOptions, minutes: number, model: SoakModel): Promise<void> {
  const { raw } = await context.client();
  const seconds = minutes * 60;
  const report = await soak(
    {
      callers: [{ inference: raw.inference }],
      admin: raw.inferenceAdmin,
      model,
      seconds,
      warmUpSeconds: Math.min(180, seconds / 10),
      concurrency: Math.max(...o.concurrency),
      perSecond: o.rate === undefined ? undefined : Math.max(...o.rate),
      seed: o.seed,
      sampleMs: Math.max(1_000, Math.min(60_000, seconds * 10)),
      onSample: (s) =>
        context.out.say(
          `${s.seconds.toFixed(0)} s  ${s.requests} requests  ${s.running} running  ${s.usedBlocks} blocks  ${mib(s.residentBytes)}`,
        ),
    },
    context.signal,
  );
  context.out.result(report, describeSoak(report));
  if (Object.keys(report.wrong).length > 0 || report.leakedBlocks > 0 || report.leftRunning > 0)
    throw new Failure('internal', 'the server did what it must not do; see the lines above', { reason: 'SOAK_FAILED' });
}

/** The engine in this process, with a base from a folder. Loaded only when it is asked for. */
async function loadAlone(modelDir: string, o: ServeOptions) {
  const [{ loadModel }, { runEngineAlone }] = await Promise.all([
    import('@medmesh/engine'),
    import('../bench/engine-alone.ts'),
  ]);
  const model = await loadModel({ modelDir: resolve(modelDir), device: o.engineDevice });
  await model.openGenerator({ maxRunning: Math.max(...o.concurrency), memoryBudget: o.engineMemoryBudget });
  return {
    run: (load: Load, signal: AbortSignal) => runEngineAlone(model, load, signal),
    close: () => model.close(),
  };
}

async function serve(context: CommandContext, o: ServeOptions): Promise<void> {
  const client = await context.client();
  const base = client.models.name(o.model);
  const largest = Math.min(...o.promptTokens);
  if (o.sharedTokens > largest) {
    throw new Failure(
      'invalid_argument',
      `--shared-tokens is ${o.sharedTokens}; use at most ${largest}, the shortest prompt`,
      {
        reason: 'FIELD_INVALID',
      },
    );
  }
  const adapters = o.adapter.map((id) => (id === 'none' ? '' : client.adapters.name(id)));
  // Loads what is measured, so that loading is not; the base last, for its vocabulary.
  for (const adapter of new Set(adapters))
    await client.raw.inference.complete(
      {
        model: adapter === '' ? { base } : { adapter },
        input: { $case: 'tokens', value: { ids: [1] } },
        sampling: { maxTokens: 1 },
      },
      { deadlineMs: 600_000, signal: context.signal },
    );
  await client.raw.inference.complete(
    { model: { base }, input: { $case: 'tokens', value: { ids: [1] } }, sampling: { maxTokens: 1 } },
    { deadlineMs: 600_000, signal: context.signal },
  );
  const { vocabularySize, contextLength } = await client.raw.inferenceAdmin.getModelInfo({ base });
  if (o.soak !== undefined) {
    const named = adapters.filter((adapter) => adapter !== '');
    await serveSoak(context, o, o.soak, { base, adapters: named, vocabularySize, contextLength });
    return;
  }
  const arrivals: Load['arrival'][] =
    o.rate === undefined
      ? o.concurrency.map((count) => ({ kind: 'concurrency', count }))
      : o.rate.map((perSecond) => ({ kind: 'rate', perSecond }));
  const alone = o.engine === undefined ? undefined : await loadAlone(o.engine, o);
  const reports: LoadReport[] = [];
  for (const promptTokens of o.promptTokens)
    for (const newTokens of o.newTokens)
      for (const arrival of arrivals) {
        const { requests, sharedTokens } = o;
        // Another seed for every load: none finds the prompts of the one before in the cache.
        const seed = o.seed + reports.length;
        const load = { requests, arrival, promptTokens, newTokens, sharedTokens, adapters, base, vocabularySize, seed };
        await runLoad(client, warmUpOf(load), context.signal);
        const report = await runLoad(client, load, context.signal);
        await alone?.run(warmUpOf(load), context.signal);
        if (alone !== undefined) report.engineTokensPerSecond = await alone.run(load, context.signal);
        context.out.say(`${describe([report]).split('\n').at(-1) ?? ''}`);
        reports.push(report);
      }
  await alone?.close();
  context.out.result({ base, loads: reports }, describe(reports));
}

export function addBenchCommands(program: Command, signal: AbortSignal): void {
  const bench = program.command('bench').description('measure a running mesh');
  bench
    .command('serve')
    .description(
      'send prompts of random tokens through gRPC, and measure the time to the first token and between tokens',
    )
    .requiredOption('--model <model>', 'base')
    .option('--adapter <adapter...>', 'adapters, taken in turn; none is the base alone', ['none'])
    .option('--concurrency <n,…>', 'so many requests at once', wholeNumbers, [1])
    .option(
      '--rate <n,…>',
      'in place of it, and with --soak beside it: requests a second, at random times',
      wholeNumbers,
    )
    .option('--prompt-tokens <n,…>', 'tokens of a prompt', wholeNumbers, [128])
    .option('--new-tokens <n,…>', 'tokens of an answer', wholeNumbers, [32])
    .option('--shared-tokens <n>', 'tokens that all prompts begin with', wholeNumber(0), 0)
    .option('--requests <n>', 'requests of each load', wholeNumber(1, 1_000_000), 32)
    .option('--seed <n>', 'of prompts and times', wholeNumber(0), 1)
    .option(
      '--engine <folder>',
      'also measure the engine alone, in this process, with the base from this folder (with --concurrency)',
    )
    .option('--engine-device <device>', 'where: cpu, cuda or cuda:N', 'cpu')
    .option('--engine-memory-budget <size>', 'on a GPU, of its memory; auto takes what is free', memorySize, 'auto')
    .option(
      '--soak <minutes>',
      'instead: a random mix with cancels, deadlines, slow readers and adapters that come and go, checked for leaks',
      number(0.01, 10_000),
    )
    .action(withContext(signal, (context, options: ServeOptions) => serve(context, options)));
}
