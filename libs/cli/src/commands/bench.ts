import { Failure } from '@medmesh/errors';
import type { Command } from 'commander';
import type { Spread } from '../bench/percentiles.ts';
import { type Load, type LoadReport, runLoad } from '../bench/serve.ts';
import { type CommandContext, withContext } from '../context.ts';
import { wholeNumber, wholeNumbers } from '../option-values.ts';
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
  ];
  return table(head, rows);
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
  const { vocabularySize } = await client.raw.inferenceAdmin.getModelInfo({ base });
  const arrivals: Load['arrival'][] =
    o.rate === undefined
      ? o.concurrency.map((count) => ({ kind: 'concurrency', count }))
      : o.rate.map((perSecond) => ({ kind: 'rate', perSecond }));
  const reports: LoadReport[] = [];
  for (const promptTokens of o.promptTokens)
    for (const newTokens of o.newTokens)
      for (const arrival of arrivals) {
        const { requests, sharedTokens } = o;
        // Another seed for every load: none finds the prompts of the one before in the cache.
        const seed = o.seed + reports.length;
        const load = { requests, arrival, promptTokens, newTokens, sharedTokens, adapters, base, vocabularySize, seed };
        const report = await runLoad(client, load, context.signal);
        context.out.say(`${describe([report]).split('\n').at(-1) ?? ''}`);
        reports.push(report);
      }
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
    .option('--rate <n,…>', 'in place of it: requests a second, at random times', wholeNumbers)
    .option('--prompt-tokens <n,…>', 'tokens of a prompt', wholeNumbers, [128])
    .option('--new-tokens <n,…>', 'tokens of an answer', wholeNumbers, [32])
    .option('--shared-tokens <n>', 'tokens that all prompts begin with', wholeNumber(0), 0)
    .option('--requests <n>', 'requests of each load', wholeNumber(1, 1_000_000), 32)
    .option('--seed <n>', 'of prompts and times', wholeNumber(0), 1)
    .action(withContext(signal, (context, options: ServeOptions) => serve(context, options)));
}
