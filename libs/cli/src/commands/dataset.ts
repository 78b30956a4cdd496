import type { MedmeshClient } from '@medmesh/client';
import { dataset } from '@medmesh/proto';
import type { Command } from 'commander';
import { type CommandContext, withContext } from '../context.ts';
import { number, wholeNumber, wholeNumbers } from '../option-values.ts';
import { formatBytes, table } from '../output.ts';
import { createProgressBar } from '../progress.ts';
import {
  addSpecOptions,
  collect,
  dropIdentifiersHelp,
  evaluationHelp,
  formatOf,
  nearDuplicatesHelp,
  type SpecOptions,
  specOf,
} from './dataset-spec.ts';

/** Uploads files of rows; what is a URI already stays where it is. */
async function upload(
  context: CommandContext,
  client: MedmeshClient,
  files: readonly string[],
  how: Pick<dataset.RowSource, 'format' | 'charset'>,
): Promise<dataset.RowSource[]> {
  const sources: dataset.RowSource[] = [];
  for (const path of files) {
    if (/^(s3|file):\/\//.test(path)) {
      sources.push({ uri: path, fileName: '', ...how });
      continue;
    }
    const bar = createProgressBar('upload', context.out.json);
    try {
      const { digest, fileName } = await client.datasets.upload(path, (done, total) =>
        bar.update(done, total, `${formatBytes(done)} of ${formatBytes(total)}`),
      );
      sources.push({ uri: digest, fileName, ...how });
    } finally {
      bar.stop();
    }
  }
  return sources;
}

/** Evaluation sets are what their file names say. */
const asNamed = { format: dataset.RowFormat.UNSPECIFIED, charset: '' };

/** Uploads the files and returns the whole spec. */
async function uploadAll(
  context: CommandContext,
  client: MedmeshClient,
  files: string[],
  options: SpecOptions,
): Promise<dataset.DatasetVersionSpec> {
  const spec = await specOf(options, client.models.name(options.model));
  const sources = await upload(context, client, files, { format: formatOf(options), charset: options.charset });
  return { ...spec, sources, evaluationSources: await upload(context, client, options.evaluation, asNamed) };
}

const reasonName = (code: dataset.DropReasonCode) =>
  dataset.dropReasonCodeToJSON(code).replace('DROP_REASON_CODE_', '');

const distribution = (d: dataset.Distribution | undefined) =>
  d === undefined ? '-' : `${d.min} / ${d.p50} / ${d.p95} / ${d.max}`;

/** Counts for people. */
export function describeStats(stats: dataset.DataStats | undefined): string {
  if (stats === undefined) return '';
  const lines = [
    `rows       ${stats.rowCount} read, ${stats.usedRowCount} used (${stats.validationRowCount} for validation), ${stats.droppedRowCount} left out, ${stats.truncatedRowCount} cut`,
    `tokens     ${stats.tokenCount}, of which ${stats.trainableTokenCount} count in the loss`,
    `row length ${distribution(stats.rowTokens)} (min / median / p95 / max tokens)`,
    `packing    ${(100 * stats.packingEfficiency).toFixed(1)} % of positions used`,
    ...stats.dropReasons.map(
      (r) =>
        `  ${reasonName(r.code)}: ${r.rowCount} (rows ${r.sampleRowIndices.slice(0, 10).join(', ')}${r.rowCount > 10 ? ', …' : ''})`,
    ),
    ...stats.warnings.map((warning) => `  note: ${warning}`),
  ];
  return lines.join('\n');
}

const follow = (context: CommandContext, label: string) => {
  const bar = createProgressBar(label, context.out.json);
  return {
    bar,
    onProgress: (m: dataset.DatasetVersionMetadata) => bar.update(m.byteCount, m.totalByteCount, `${m.rowCount} rows`),
  };
};

type TransformOptions = {
  nearDuplicates?: number;
  evaluation: string[];
  dropIdentifiers?: boolean;
  validation?: number;
  splitSeed?: number;
};

/** What an erasure did and what is left to do, for people. */
function describeErasure(erased: dataset.EraseSubjectResponse): string {
  const list = (title: string, names: readonly string[]) =>
    names.length === 0 ? [] : [title, ...names.map((n) => `  ${n}`)];
  return [
    `${erased.erasedRowCount} rows erased`,
    ...list(
      'versions deleted, and what is in their place:',
      erased.versions.map((v) => `${v.name} → ${v.replacement === '' ? `nothing: ${v.errorMessage}` : v.replacement}`),
    ),
    ...list('adapters trained on them (revoke them, or train anew):', erased.adapters),
    ...list('models merged from those adapters:', erased.models),
    ...list('jobs that read them (their checkpoints remain):', erased.fineTuningJobs),
    ...list('files outside the store that still hold them:', erased.remainingSources),
  ].join('\n');
}

/** `dataset create|validate|transform|erase|preview|list|versions`. */
export function addDatasetCommands(program: Command, signal: AbortSignal): void {
  const group = program.command('dataset').description('rows to train on');
  addSpecOptions(
    group
      .command('create <files...>')
      .description('upload rows and build a version')
      .requiredOption('--id <id>', 'id of the dataset; created if it is new'),
  ).action(
    withContext(signal, async (context, files: string[], options: SpecOptions & { id: string }, _command: Command) => {
      const client = await context.client();
      const spec = await uploadAll(context, client, files, options);
      await client.datasets.ensure(options.id);
      const { bar, onProgress } = follow(context, 'build');
      const version = await client.datasets
        .buildVersion(options.id, spec, { onProgress, signal })
        .finally(() => bar.stop());
      context.out.result(dataset.DatasetVersion.toJSON(version), `${version.name}\n${describeStats(version.stats)}`);
    }),
  );
  group
    .command('erase <subject>')
    .description('remove the rows about a subject, named by a keyed digest, and list what was trained on them')
    .action(
      withContext(signal, async (context, subject: string, _options: object, _command: Command) => {
        const client = await context.client();
        const erased = await client.datasets.eraseSubject(subject, { signal });
        context.out.result(dataset.EraseSubjectResponse.toJSON(erased), describeErasure(erased));
      }),
    );
  group
    .command('transform <version>')
    .description('derive a version from another: leave more rows out, or split anew')
    .option('--near-duplicates <similarity>', nearDuplicatesHelp, number())
    .option('--evaluation <file>', evaluationHelp, collect, [])
    .option('--drop-identifiers', dropIdentifiersHelp)
    .option('--validation <share>', 'share of rows held out, 0 to 0.5', number())
    .option('--split-seed <seed>', 'seed of the split', wholeNumber(0))
    .action(
      withContext(signal, async (context, version: string, options: TransformOptions, _command: Command) => {
        const client = await context.client();
        const evaluationSources = await upload(context, client, options.evaluation, asNamed);
        const { nearDuplicates, dropIdentifiers, validation, splitSeed } = options;
        const { bar, onProgress } = follow(context, 'build');
        const derived = await client.datasets
          .transform(
            version,
            {
              evaluationSources,
              ...(nearDuplicates === undefined ? {} : { nearDuplicateSimilarity: nearDuplicates }),
              ...(dropIdentifiers === undefined ? {} : { dropIdentifiers }),
              ...(validation === undefined ? {} : { validationFraction: validation }),
              ...(splitSeed === undefined ? {} : { splitSeed }),
            },
            { onProgress, signal },
          )
          .finally(() => bar.stop());
        context.out.result(dataset.DatasetVersion.toJSON(derived), `${derived.name}\n${describeStats(derived.stats)}`);
      }),
    );
  addSpecOptions(
    group
      .command('validate <files...>')
      .description('check rows without keeping anything')
      .option('--id <id>', 'dataset to check for', 'validation'),
  ).action(
    withContext(signal, async (context, files: string[], options: SpecOptions & { id: string }, _command: Command) => {
      const client = await context.client();
      const spec = await uploadAll(context, client, files, options);
      await client.datasets.ensure(options.id);
      const { bar, onProgress } = follow(context, 'validate');
      const stats = await client.datasets
        .validate(options.id, { ...spec, dropInvalid: true }, { onProgress, signal })
        .finally(() => bar.stop());
      context.out.result(dataset.DataStats.toJSON(stats), describeStats(stats));
    }),
  );
  addSpecOptions(
    group
      .command('preview <files...>')
      .description('show rows as the model will see them: text, tokens and what is trained on')
      .option('--id <id>', 'dataset to preview for', 'validation')
      .option('--rows <indexes>', 'row indexes, separated by commas', wholeNumbers, [0]),
  ).action(
    withContext(
      signal,
      async (context, files: string[], options: SpecOptions & { id: string; rows: number[] }, _command: Command) => {
        const client = await context.client();
        const spec = await uploadAll(context, client, files, options);
        await client.datasets.ensure(options.id);
        const examples = await client.datasets.preview(options.id, {
          spec,
          rowIndices: options.rows,
        });
        context.out.result(
          examples.map((example) => dataset.PreviewExample.toJSON(example)),
          examples.map(describeExample).join('\n\n'),
        );
      },
    ),
  );
  group
    .command('list')
    .description('list datasets')
    .action(
      withContext(signal, async (context, _options: object, _command: Command) => {
        const client = await context.client();
        const all = await Array.fromAsync(client.datasets.list());
        const rows = all.map((d) => [
          d.name.split('/').at(-1) ?? '',
          d.latestVersion.split('/').at(-1) ?? '',
          d.createTime?.toISOString() ?? '',
        ]);
        context.out.result(
          all.map((d) => dataset.Dataset.toJSON(d)),
          table(['ID', 'LATEST VERSION', 'CREATED'], rows),
        );
      }),
    );
  group
    .command('versions <dataset>')
    .description('list a dataset’s versions')
    .action(
      withContext(signal, async (context, id: string, _options: object, _command: Command) => {
        const client = await context.client();
        const all = await Array.fromAsync(client.datasets.listVersions(id));
        const rows = all.map((v) => [
          v.name,
          String(v.stats?.usedRowCount ?? 0),
          String(v.stats?.tokenCount ?? 0),
          v.createTime?.toISOString() ?? '',
        ]);
        context.out.result(
          all.map((v) => dataset.DatasetVersion.toJSON(v)),
          table(['NAME', 'ROWS', 'TOKENS', 'CREATED'], rows),
        );
      }),
    );
}

/** A row's text, and under it what is trained on, marked by `^`. */
function describeExample(example: dataset.PreviewExample): string {
  const dropped =
    example.dropReason === dataset.DropReasonCode.UNSPECIFIED ? '' : ` (left out: ${reasonName(example.dropReason)})`;
  const trained = example.tokens.filter((token) => token.trained);
  return `row ${example.rowIndex}${dropped}: ${example.tokens.length} tokens, ${trained.length} trained\n${example.text}\n--- trained on ---\n${trained.map((token) => token.text).join('')}`;
}
