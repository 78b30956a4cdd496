import { readFile } from 'node:fs/promises';
import { Failure } from '@medmesh/errors';
import { dataset } from '@medmesh/proto';
import type { Command } from 'commander';

/** Options that make up a dataset version's spec. */
export type SpecOptions = {
  model: string;
  template: string;
  promptFile?: string;
  completionFile?: string;
  format?: string;
  charset: string;
  columns?: string;
  lossMask: string;
  maxTokens: string;
  overlong: string;
  validation: string;
  dropInvalid: boolean;
  keepDuplicates: boolean;
  limit: string;
};

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
    .option('--format <format>', 'jsonl, json, csv or parquet; default: by the file name')
    .option('--charset <charset>', 'encoding of text formats, e.g. gb18030', 'utf-8')
    .option('--columns <mapping>', 'question=…,reasoning=…,response=… or instruction=…,input=…,output=… or messages=…')
    .option('--loss-mask <mask>', 'completion, response-only or all', 'completion')
    .option('--max-tokens <count>', 'longest row in tokens', '2048')
    .option('--overlong <policy>', 'error, drop, truncate-right or truncate-left', 'error')
    .option('--validation <share>', 'share of rows held out, 0 to 0.5', '0')
    .option('--drop-invalid', 'leave unusable rows out instead of failing', false)
    .option('--keep-duplicates', 'keep rows that came before', false)
    .option('--limit <rows>', 'use only the first rows', '0');

const wrong = (option: string, value: string, allowed: string) =>
  new Failure('invalid_argument', `--${option} is ${JSON.stringify(value)}; use ${allowed}`, {
    reason: 'FIELD_INVALID',
  });

function choose<T>(option: string, value: string, choices: Record<string, T>): T {
  const chosen = choices[value];
  if (chosen === undefined) throw wrong(option, value, Object.keys(choices).join(', '));
  return chosen;
}

function number(option: string, text: string): number {
  const value = Number(text);
  if (!Number.isFinite(value)) throw wrong(option, text, 'a number');
  return value;
}

function columnsOf(text: string): dataset.ColumnMapping {
  const parts = new Map(text.split(',').map((part) => part.split('=', 2) as [string, string]));
  const get = (name: string) => parts.get(name) ?? '';
  const known = ['question', 'reasoning', 'response', 'instruction', 'input', 'output', 'messages'];
  for (const [name, column] of parts)
    if (!known.includes(name) || !column)
      throw wrong('columns', text, `name=column pairs; names are ${known.join(', ')}`);
  if (parts.has('messages')) return { shape: { $case: 'conversation', value: { messages: get('messages') } } };
  if (parts.has('instruction') || parts.has('output')) {
    return {
      shape: {
        $case: 'instruction',
        value: { instruction: get('instruction'), input: get('input'), output: get('output') },
      },
    };
  }
  return {
    shape: {
      $case: 'reasoning',
      value: { question: get('question'), reasoning: get('reasoning'), response: get('response') },
    },
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
  const mask = dataset.LossMask;
  const policy = dataset.OverlongPolicy;
  return dataset.DatasetVersionSpec.fromPartial({
    model: modelName,
    template: await templateOf(options),
    ...(options.columns === undefined ? {} : { columns: columnsOf(options.columns) }),
    lossMask: choose('loss-mask', options.lossMask, {
      completion: mask.COMPLETION,
      'response-only': mask.RESPONSE_ONLY,
      all: mask.ALL,
    }),
    maxTokens: number('max-tokens', options.maxTokens),
    overlong: choose('overlong', options.overlong, {
      error: policy.ERROR,
      drop: policy.DROP,
      'truncate-right': policy.TRUNCATE_RIGHT,
      'truncate-left': policy.TRUNCATE_LEFT,
    }),
    validationFraction: number('validation', options.validation),
    dropInvalid: options.dropInvalid,
    keepDuplicates: options.keepDuplicates,
    rowLimit: number('limit', options.limit),
  });
}

export function formatOf(options: SpecOptions): dataset.RowFormat {
  const format = dataset.RowFormat;
  if (options.format === undefined) return format.UNSPECIFIED;
  return choose('format', options.format, {
    jsonl: format.JSONL,
    json: format.JSON,
    csv: format.CSV,
    parquet: format.PARQUET,
  });
}
