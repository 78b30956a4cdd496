import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { GenerateStep, ModelInfo } from '@medmesh/engine';
import type { TextTokenizer } from '@medmesh/text';
import { type Command, Option } from 'commander';
import type { CommandContext } from '../../context.ts';
import { number, wholeNumber, wholeNumbers } from '../../option-values.ts';
import { engineAction } from './engine-action.ts';
import { kindOf, refusal } from './input-file.ts';
import { addModelOptions, inspectModelFolder, loadModelAndAdapter, type ModelOptions } from './model-options.ts';

type GenerateOptions = ModelOptions & {
  prompt?: string;
  tokens?: number[];
  special: boolean;
  maxTokens: number;
  temperature: number;
  topP: number;
  topK: number;
  minP: number;
  repetitionPenalty: number;
  seed?: number;
  stop: string[];
  ignoreEos: boolean;
};

/** Text of new tokens as it may be shown: whole characters, nothing of a stop string. */
type TextStream = { push(tokenId: number): { text: string; stopped: boolean }; flush(): string };

async function createTextStream(tokenizer: TextTokenizer, stops: readonly string[]): Promise<TextStream> {
  const [{ Utf8Stream }, { createStopMatcher }] = await Promise.all([
    import('@medmesh/engine'),
    import('@medmesh/text'),
  ]);
  const utf8 = new Utf8Stream();
  const matcher = createStopMatcher(stops);
  return {
    push(tokenId) {
      const { text, matched } = matcher.push(utf8.push(tokenizer.tokenBytes(tokenId)));
      return { text, stopped: matched !== undefined };
    },
    flush: () => matcher.push(utf8.flush()).text + matcher.flush(),
  };
}

/** A model folder's tokenizer, where it has one. */
async function loadFolderTokenizer(dir: string): Promise<TextTokenizer | undefined> {
  if ((await kindOf(join(dir, 'tokenizer.json'))) !== 'file') return undefined;
  const { loadTokenizer } = await import('@medmesh/text');
  return loadTokenizer(dir);
}

/** End-of-sequence ids of a folder without a tokenizer. */
async function configuredStopIds(dir: string): Promise<number[]> {
  const ids: number[] = [];
  for (const name of ['generation_config.json', 'config.json']) {
    if ((await kindOf(join(dir, name))) !== 'file') continue;
    let value: unknown;
    try {
      value = (JSON.parse(await readFile(join(dir, name), 'utf8')) as { eos_token_id?: unknown }).eos_token_id;
    } catch {
      throw refusal(`${join(dir, name)} is not JSON`);
    }
    for (const id of Array.isArray(value) ? value : [value])
      if (typeof id === 'number' && Number.isInteger(id) && id >= 0) ids.push(id);
  }
  return [...new Set(ids)];
}

async function promptIds(
  options: GenerateOptions,
  tokenizer: TextTokenizer | undefined,
  info: ModelInfo,
): Promise<Uint32Array> {
  if (options.tokens !== undefined) {
    const outside = options.tokens.findIndex((id) => id >= info.vocabSize);
    if (outside >= 0)
      throw refusal(
        `--tokens: id ${outside} is ${options.tokens[outside]}, outside the vocabulary; the model's ids go from 0 to ${info.vocabSize - 1}`,
        'TOKEN_ID_INVALID',
      );
    return Uint32Array.from(options.tokens);
  }
  if (options.prompt === undefined) throw refusal('give --prompt or --tokens', 'USAGE');
  if (tokenizer === undefined)
    throw refusal(`${options.model} has no tokenizer.json, so --prompt cannot be read; give --tokens`);
  const ids = await tokenizer.encode(options.prompt, { addSpecialTokens: true, parseSpecialTokens: options.special });
  if (ids.length === 0) throw refusal('the prompt has no token');
  const outside = ids.findIndex((id) => id >= info.vocabSize);
  if (outside >= 0)
    throw refusal(
      `tokenizer.json does not fit the model: it makes id ${ids[outside]}, but the vocabulary has ${info.vocabSize}`,
    );
  return ids;
}

async function generate({ out, signal }: CommandContext, options: GenerateOptions): Promise<void> {
  const info = await inspectModelFolder(options.model);
  const tokenizer = await loadFolderTokenizer(options.model);
  if (options.stop.length > 0 && tokenizer === undefined)
    throw refusal(`${options.model} has no tokenizer.json, so --stop has no text to look at`);
  const text = tokenizer === undefined ? undefined : await createTextStream(tokenizer, options.stop);
  const tokens = await promptIds(options, tokenizer, info);
  const ends = options.ignoreEos ? [] : (tokenizer?.stopTokenIds ?? (await configuredStopIds(options.model)));
  const seed = options.seed ?? randomBytes(6).readUIntBE(0, 6);
  const { model, adapter } = await loadModelAndAdapter(options, info, signal);
  const made: number[] = [];
  let answer = '';
  let finish = 'length';
  const show = (piece: string) => {
    answer += piece;
    out.write(piece);
  };
  /** Returns whether a stop string is complete. */
  const take = ({ tokenId, finish: end }: GenerateStep): boolean => {
    made.push(tokenId);
    finish = end ?? finish;
    if (text === undefined) {
      out.write(`${made.length > 1 ? ' ' : ''}${tokenId}`);
      return false;
    }
    // The token that ends a generation is no part of the text.
    if (end === 'stop') return false;
    const { text: piece, stopped } = text.push(tokenId);
    show(piece);
    if (stopped) finish = 'stop_string';
    return stopped;
  };
  const begin = performance.now();
  try {
    const { temperature, topP, topK, minP, repetitionPenalty, maxTokens } = options;
    const sampling = {
      temperature,
      topP,
      topK,
      minP,
      repetitionPenalty,
      maxTokens,
      presencePenalty: 0,
      frequencyPenalty: 0,
      seed: BigInt(seed),
      stopTokenIds: ends.filter((id) => id < info.vocabSize),
    };
    for await (const step of model.generate({ tokens, adapter, sampling, signal })) if (take(step)) break;
    if (text !== undefined) show(text.flush());
  } finally {
    if (made.length > 0) out.write('\n');
    await model.close();
  }
  if (!out.json) return;
  const durationMs = Math.round(performance.now() - begin);
  out.result(
    {
      ...(tokenizer === undefined ? {} : { text: answer }),
      tokens: made,
      finish,
      prompt_tokens: tokens.length,
      seed,
      duration_ms: durationMs,
    },
    '',
  );
}

/** `engine generate`: continue a text or token ids. */
export function addGenerateCommand(group: Command, signal: AbortSignal): void {
  addModelOptions(
    group.command('generate').description('continue a text or token ids, as they are, without a template'),
    'PEFT adapter folder to apply; default: none',
  )
    .option('--prompt <text>', 'text to continue; needs the folder’s tokenizer.json')
    .addOption(
      new Option('--tokens <ids>', 'token ids to continue, separated by commas')
        .argParser(wholeNumbers)
        .conflicts('prompt'),
    )
    .option('--special', 'read special-token text in the prompt as special tokens', false)
    .option('--max-tokens <n>', 'most new tokens', wholeNumber(1, 2 ** 31 - 1), 512)
    .option('--temperature <t>', '0 chooses the likeliest token', number(0, 100), 0)
    .option('--top-p <p>', 'nucleus', number(Number.MIN_VALUE, 1), 1)
    .option('--top-k <k>', 'likeliest tokens kept; 0: all', wholeNumber(0, 2 ** 31 - 1), 0)
    .option('--min-p <p>', 'least share of the likeliest token’s probability', number(0, 1), 0)
    .option('--repetition-penalty <x>', 'penalty for tokens seen', number(Number.MIN_VALUE, 100), 1)
    .option('--seed <n>', 'seed of the choice (default: random)', wholeNumber(0))
    .option('--stop <text...>', 'text that ends the generation and is left out', [])
    .option('--ignore-eos', 'go on after the end-of-sequence token', false)
    .addHelpText(
      'after',
      '\nStreams the new text to stdout (the new ids where the folder has no tokenizer.json). With --json one line at the end:\n' +
        '  {"text", "tokens", "finish": "stop" | "stop_string" | "length", "prompt_tokens", "seed", "duration_ms"}; "tokens" includes the end token.',
    )
    .action(engineAction(signal, (context, options: GenerateOptions) => generate(context, options)));
}
