import { createInterface } from 'node:readline/promises';
import type { AskInput, AskOptions, MedmeshClient } from '@medmesh/client';
import { Failure } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import { type Command, Option } from 'commander';
import { type CommandContext, withContext } from '../context.ts';
import { number, wholeNumber } from '../option-values.ts';
import type { Output } from '../output.ts';

type AskCommandOptions = {
  model?: string;
  adapter?: string;
  text: boolean;
  chat: boolean;
  temperature: number;
  topP: number;
  topK: number;
  minP: number;
  repetitionPenalty: number;
  maxTokens: number;
  seed?: number;
  stop: string[];
  reasoning: 'auto' | 'on' | 'off';
};

const addAskOptions = (command: Command): Command =>
  command
    .option('--model <model>', 'base; default: the adapter’s')
    .option('--adapter <adapter>', 'adapter; default: none')
    .option('--temperature <t>', '0 chooses the likeliest token', number(), 0)
    .option('--top-p <p>', 'nucleus', number(), 1)
    .option('--top-k <k>', 'likeliest tokens kept; 0: all', wholeNumber(0), 0)
    .option('--min-p <p>', 'least share of the likeliest token’s probability', number(), 0)
    .option('--repetition-penalty <x>', 'penalty for tokens seen', number(), 1)
    .option('--max-tokens <n>', 'most new tokens', wholeNumber(0), 512)
    .option('--seed <n>', 'seed of the choice (default: random)', wholeNumber(0))
    .option('--stop <text...>', 'ends the answer', [])
    .addOption(
      new Option('--reasoning <mode>', 'whether the model reasons before it answers')
        .choices(['auto', 'on', 'off'])
        .default('auto'),
    );

function askOptions(client: MedmeshClient, o: AskCommandOptions, signal: AbortSignal): AskOptions {
  const modes = {
    auto: inference.Reasoning_Mode.AUTO,
    on: inference.Reasoning_Mode.ON,
    off: inference.Reasoning_Mode.OFF,
  };
  const mode = modes[o.reasoning];
  if (o.model === undefined && o.adapter === undefined)
    throw new Failure('invalid_argument', 'name a --model, an --adapter, or both', { reason: 'FIELD_INVALID' });
  return {
    ...(o.model === undefined ? {} : { base: client.models.name(o.model) }),
    ...(o.adapter === undefined ? {} : { adapter: client.adapters.name(o.adapter) }),
    sampling: {
      temperature: o.temperature,
      topP: o.topP,
      topK: o.topK,
      minP: o.minP,
      repetitionPenalty: o.repetitionPenalty,
      maxTokens: o.maxTokens,
      stop: o.stop,
      ...(o.seed === undefined ? {} : { seed: o.seed }),
    },
    reasoning: { mode },
    signal,
  };
}

const dim = (text: string) => (process.stdout.isTTY ? `\u001b[2m${text}\u001b[22m` : text);

/** Streams an answer, reasoning and answer apart; returns the answer's text. */
export async function streamAnswer(
  out: Output,
  client: MedmeshClient,
  input: AskInput,
  options: AskOptions,
): Promise<string> {
  let channel: 'reasoning' | 'answer' | undefined;
  let reasoning = '';
  let answer = '';
  let started: inference.Started | undefined;
  let finished: inference.Finished | undefined;
  for await (const event of client.inference.ask(input, options)) {
    if (event.kind === 'started') started = event.started;
    else if (event.kind === 'finished') finished = event.finished;
    else if (event.text !== '') {
      if (event.kind !== channel) {
        if (event.kind === 'reasoning') out.write(dim('reasoning: '));
        else out.write(`${channel === undefined ? '' : '\n'}${dim('answer:    ')}`);
        channel = event.kind;
      }
      out.write(event.kind === 'reasoning' ? dim(event.text) : event.text);
      if (event.kind === 'reasoning') reasoning += event.text;
      else answer += event.text;
    }
  }
  out.write('\n');
  if (out.json) {
    out.result(
      {
        reasoning,
        answer,
        ...(started === undefined ? {} : { started: inference.Started.toJSON(started) }),
        ...(finished === undefined ? {} : { finished: inference.Finished.toJSON(finished) }),
      },
      '',
    );
  }
  return answer;
}

async function generate(context: CommandContext, question: string, options: AskCommandOptions): Promise<void> {
  const client = await context.client();
  const input: AskInput = options.text
    ? { text: question }
    : options.chat
      ? { turns: [{ role: 'user', content: question }] }
      : { question };
  await streamAnswer(context.out, client, input, askOptions(client, options, context.signal));
}

/** A conversation in the terminal. With the model's own chat template the turns are remembered; with a trained prompt each question stands alone. */
async function chat(context: CommandContext, options: AskCommandOptions): Promise<void> {
  const client = await context.client();
  const ask = askOptions(client, options, context.signal);
  const lines = createInterface({
    input: process.stdin,
    output: process.stderr,
    terminal: process.stdin.isTTY === true,
  });
  context.out.say('Ask a question; an empty line ends. A language model can be wrong: this is not medical advice.');
  const turns: { role: 'user' | 'assistant'; content: string }[] = [];
  try {
    for (;;) {
      const question = await lines.question('> ', { signal: context.signal }).catch(() => '');
      if (question.trim() === '') return;
      if (options.chat) {
        turns.push({ role: 'user', content: question });
        turns.push({ role: 'assistant', content: await streamAnswer(context.out, client, { turns }, ask) });
      } else await streamAnswer(context.out, client, { question }, ask);
    }
  } finally {
    lines.close();
  }
}

/** `generate` and `chat`. */
export function addGenerateCommands(program: Command, signal: AbortSignal): void {
  addAskOptions(
    program
      .command('generate <question>')
      .description('ask once')
      .option('--text', 'continue the text as it is, without a template', false)
      .option('--chat', 'use the model’s own chat template', false),
  ).action(
    withContext(signal, (context, question: string, options: AskCommandOptions, _command: Command) =>
      generate(context, question, options),
    ),
  );
  addAskOptions(
    program
      .command('chat')
      .description('ask again and again')
      .option('--chat', 'use the model’s own chat template and remember the turns', false),
  ).action(withContext(signal, (context, options: AskCommandOptions, _command: Command) => chat(context, options)));
}
