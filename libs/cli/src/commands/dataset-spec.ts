import { readFile } from 'node:fs/promises';
import { Failure } from '@medmesh/errors';
import { dataset } from '@medmesh/proto';
import { type Command, Option } from 'commander';
import { number, wholeNumber } from '../option-values.ts';

const lossMasks = {
  completion: dataset.LossMask.COMPLETION,
  'response-only': dataset.LossMask.RESPONSE_ONLY,
  all: dataset.LossMask.ALL,
} as const;

const overlongPolicies = {
  error: dataset.OverlongPolicy.ERROR,
  drop: dataset.OverlongPolicy.DROP,
  'truncate-right': dataset.OverlongPolicy.TRUNCATE_RIGHT,
  'truncate-left': dataset.OverlongPolicy.TRUNCATE_LEFT,
} as const;

const rowFormats = {
  jsonl: dataset.RowFormat.JSONL,
  json: dataset.RowFormat.JSON,
  csv: dataset.RowFormat.CSV,
  parquet: dataset.RowFormat.PARQUET,
} as const;

/** Options that make up a dataset version's spec. */
export type SpecOptions = {
  model: string;
  template: string;
  promptFile?: string;
  completionFile?: string;
  format?: keyof typeof rowFormats;
  charset: string;
  columns?: string;
  lossMask: keyof typeof lossMasks;
  maxTokens: number;
  overlong: keyof typeof overlongPolicies;
  validation: number;
  dropInvalid: boolean;
  keepDuplicates: boolean;
  limit: number;
  nearDuplicates: number;
  evaluation: string[];
  dropIdentifiers: boolean;
};

/** An option that may be given several times. */
export const collect = (value: string, before: readonly string[]): string[] => [...before, value];

export const evaluationHelp =
  'evaluation set whose rows must not be trained on (13 words or 64 characters in common); repeatable';
export const nearDuplicatesHelp = 'leave out rows this similar to one before, 0.5 to 1; 0: none';
export const dropIdentifiersHelp = 'leave out rows in which a patient identifier is found';

export const addSpecOptions = (command: Command): Command =>
  command
    .requiredOption('--model <model>', 'model whose tokenizer is used')
    .option(
      '--template <name>',
      '`medical-reasoning`, `instruction`, `chat`, or `custom` with --prompt-file and --completion-file',
      'medical-reasoning',
    )
    .option('--prompt-file <file>', 'custom template: what the model is given, with {{slots}}')
    .option('--completion-file <file>', 'custom template: what it shall write')
    .addOption(
      new Option('--format <format>', 'format of the rows (default: by the file name)').choices(
        Object.keys(rowFormats),
      ),
    )
    .option('--charset <charset>', 'encoding of text formats, e.g. gb18030', 'utf-8')
    .option(
      '--columns <mapping>',
      'question=…,reasoning=…,response=… or instruction=…,input=…,output=… or messages=…; and subject=… (a keyed digest of whom a row is about)',
    )
    .addOption(
      new Option('--loss-mask <mask>', 'what is trained on').choices(Object.keys(lossMasks)).default('completion'),
    )
    .option('--max-tokens <count>', 'longest row in tokens', wholeNumber(0), 2048)
    .addOption(
      new Option('--overlong <policy>', 'what happens to a longer row')
        .choices(Object.keys(overlongPolicies))
        .default('error'),
    )
    .option('--validation <share>', 'share of rows held out, 0 to 0.5', number(), 0)
    .option('--drop-invalid', 'leave unusable rows out instead of failing', false)
    .option('--keep-duplicates', 'keep rows that came before', false)
    .option('--limit <rows>', 'use only the first rows; 0: all', wholeNumber(0), 0)
    .option('--near-duplicates <similarity>', nearDuplicatesHelp, number(), 0)
    .option('--evaluation <file>', evaluationHelp, collect, [])
    .option('--drop-identifiers', dropIdentifiersHelp, false);

const wrong = (option: string, value: string, allowed: string) =>
  new Failure('invalid_argument', `--${option} is ${JSON.stringify(value)}; use ${allowed}`, {
    reason: 'FIELD_INVALID',
  });

function columnsOf(text: string): dataset.ColumnMapping {
  const parts = new Map(text.split(',').map((part) => part.split('=', 2) as [string, string]));
  const known = ['question', 'reasoning', 'response', 'instruction', 'input', 'output', 'messages', 'subject'];
  for (const [name, column] of parts)
    if (!known.includes(name) || !column)
      throw wrong('columns', text, `name=column pairs; names are ${known.join(', ')}`);
  return { shape: shapeOf(parts), subject: parts.get('subject') ?? '' };
}

function shapeOf(parts: ReadonlyMap<string, string>): dataset.ColumnMapping['shape'] {
  const get = (name: string) => parts.get(name) ?? '';
  if (parts.has('messages')) return { $case: 'conversation', value: { messages: get('messages') } };
  if (parts.has('instruction') || parts.has('output')) {
    return {
      $case: 'instruction',
      value: { instruction: get('instruction'), input: get('input'), output: get('output') },
    };
  }
  // Only the subject's column: the shape is found by the usual names.
  if (parts.size === Number(parts.has('subject'))) return undefined;
  return {
    $case: 'reasoning',
    value: { question: get('question'), reasoning: get('reasoning'), response: get('response') },
  };
}

/** The template that options name. */
export async function templateOf(
  options: Pick<SpecOptions, 'template' | 'promptFile' | 'completionFile'>,
): Promise<dataset.TemplateSpec> {
  if (options.template === 'chat') return { template: { $case: 'chat', value: { system: '' } } };
  if (options.template !== 'custom') return { template: { $case: 'builtin', value: options.template } };
  if (options.promptFile === undefined || options.completionFile === undefined) {
    throw new Failure('invalid_argument', 'a custom template needs --prompt-file and --completion-file', {
      reason: 'FIELD_INVALID',
    });
  }
  const [prompt, completion] = await Promise.all([
    readFile(options.promptFile, 'utf8'),
    readFile(options.completionFile, 'utf8'),
  ]);
  return { template: { $case: 'custom', value: { prompt, completion } } };
}

/** The spec without its sources. */
export async function specOf(options: SpecOptions, modelName: string): Promise<dataset.DatasetVersionSpec> {
  return dataset.DatasetVersionSpec.fromPartial({
    model: modelName,
    template: await templateOf(options),
    ...(options.columns === undefined ? {} : { columns: columnsOf(options.columns) }),
    lossMask: lossMasks[options.lossMask],
    maxTokens: options.maxTokens,
    overlong: overlongPolicies[options.overlong],
    validationFraction: options.validation,
    dropInvalid: options.dropInvalid,
    keepDuplicates: options.keepDuplicates,
    rowLimit: options.limit,
    nearDuplicateSimilarity: options.nearDuplicates,
    dropIdentifiers: options.dropIdentifiers,
  });
}

export const formatOf = (options: SpecOptions): dataset.RowFormat =>
  options.format === undefined ? dataset.RowFormat.UNSPECIFIED : rowFormats[options.format];
