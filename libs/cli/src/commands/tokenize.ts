import { dataset } from '@medmesh/proto';
import type { Command } from 'commander';
import { withContext } from '../context.ts';
import { templateOf } from './dataset-spec.ts';

type RenderOptions = {
  model: string;
  template: string;
  promptFile?: string;
  completionFile?: string;
  question: string;
  reasoning: string;
  response: string;
  promptOnly: boolean;
};

/** `tokenize` and `template render`. */
export function addTokenizeCommands(program: Command, signal: AbortSignal): void {
  program
    .command('tokenize <text>')
    .description('show the tokens of a text')
    .requiredOption('--model <model>', 'model whose tokenizer is used')
    .option('--special', 'read special-token text as special tokens', false)
    .action(
      withContext(
        signal,
        async (context, text: string, options: { model: string; special: boolean }, _command: Command) => {
          const client = await context.client();
          const response = await client.raw.tokenizer.tokenize({
            model: client.models.name(options.model),
            texts: [text],
            parseSpecialTokens: options.special,
          });
          const [sequence] = response.sequences;
          const lines = (sequence?.ids ?? []).map((id, i) => `${String(id).padStart(7)}  ${sequence?.pieces[i] ?? ''}`);
          context.out.result(
            dataset.TokenizeResponse.toJSON(response),
            [...lines, `${lines.length} tokens`].join('\n'),
          );
        },
      ),
    );
  program
    .command('template')
    .description('prompt templates')
    .command('render')
    .description('show a template as the model will see it')
    .requiredOption('--model <model>', 'model whose tokenizer is used')
    .requiredOption('--question <text>', 'the question')
    .option('--reasoning <text>', 'the reasoning', '')
    .option('--response <text>', 'the answer', '')
    .option('--template <name>', '`medical-reasoning`, `instruction`, `chat` or `custom`', 'medical-reasoning')
    .option('--prompt-file <file>', 'custom template: what the model is given')
    .option('--completion-file <file>', 'custom template: what it shall write')
    .option('--prompt-only', 'only what the model is given when it is asked', false)
    .action(
      withContext(signal, async (context, options: RenderOptions, _command: Command) => {
        const client = await context.client();
        const { question, reasoning, response } = options;
        const chat = options.template === 'chat';
        const messages = [
          { role: 'user', content: question, reasoning: '' },
          ...(options.promptOnly ? [] : [{ role: 'assistant', content: response, reasoning }]),
        ];
        const rendered = await client.raw.tokenizer.renderTemplate({
          model: client.models.name(options.model),
          template: await templateOf(options),
          slots: chat ? {} : { question, reasoning, response, instruction: question, input: '', output: response },
          messages: chat ? messages : [],
          promptOnly: options.promptOnly,
        });
        const spans = rendered.spans.map(
          (span) => `${span.kind.padEnd(9)} ${JSON.stringify(rendered.text.slice(span.start, span.end))}`,
        );
        context.out.result(
          dataset.RenderTemplateResponse.toJSON(rendered),
          [
            rendered.text,
            '',
            ...spans,
            `${rendered.tokenIds.length} tokens, template ${rendered.templateDigest}${rendered.startsInsideThink ? ', the model begins inside <think>' : ''}`,
          ].join('\n'),
        );
      }),
    );
}
