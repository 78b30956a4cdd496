import { Failure } from '@medmesh/errors';
import { promptSlots, type Row, type Slots, slotsOfRow, type Turn } from './row.ts';
import type { Segment } from './segment.ts';
import {
  checkCompletionPieces,
  checkPromptPieces,
  type Piece,
  parseSlots,
  renderCompletionPieces,
  renderPromptPieces,
} from './slot-text.ts';
import type { RenderedPrompt, TemplateRenderer } from './template.ts';
import { endsInsideThink, type ReasoningMode, reasoningSwitch } from './think.ts';
import type { TextTokenizer } from './tokenizer.ts';

/** A template of fixed text with slots: what medmesh ships, and what a user writes. */
export type TextTemplate = {
  readonly kind: 'text';
  readonly name: string;
  readonly prompt: string;
  /** Used where `input` is empty. Default: `prompt`. */
  readonly promptWithoutInput?: string;
  readonly completion: string;
  /** Used where `reasoning` is empty. Default: `completion`. */
  readonly completionWithoutReasoning?: string;
};

/**
 * The tutorial's prompt: who the model is, a question, and a response that begins with the reasoning. The prompt ends
 * inside `<think>`, so a served model always begins to reason; a row without reasoning teaches it to close at once.
 */
const medicalReasoning: TextTemplate = {
  kind: 'text',
  name: 'medical-reasoning',
  prompt:
    'The instruction below sets a task, and the question gives its details. ' +
    'Reason through the question step by step before you answer, so that the response is sound and complete.\n\n' +
    '### Instruction:\n' +
    'You are a physician with broad experience in clinical reasoning, diagnosis and treatment planning. ' +
    'Answer the medical question that follows.\n\n' +
    '### Question:\n{{question}}\n\n' +
    '### Response:\n<think>\n',
  completion: '{{reasoning}}\n</think>\n{{response}}',
};

const instruction: TextTemplate = {
  kind: 'text',
  name: 'instruction',
  prompt:
    'The instruction below sets a task, and the input gives its context. Write a response that fulfils the task.\n\n' +
    '### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n### Response:\n',
  promptWithoutInput:
    'The instruction below sets a task. Write a response that fulfils the task.\n\n' +
    '### Instruction:\n{{instruction}}\n\n### Response:\n',
  completion: '<think>\n{{reasoning}}\n</think>\n\n{{output}}',
  completionWithoutReasoning: '{{output}}',
};

/** The templates that medmesh ships, by name. */
export const builtinTemplates: ReadonlyMap<string, TextTemplate> = new Map(
  [medicalReasoning, instruction].map((t) => [t.name, t]),
);

/** Compiles a text template for a tokenizer. Faults of the text are `invalid_argument` with the field's name. */
export function compileTextTemplate(template: TextTemplate, tokenizer: TextTokenizer): TemplateRenderer {
  const prompt = parseSlots('template.prompt', template.prompt);
  const promptWithoutInput = parseSlots('template.prompt', template.promptWithoutInput ?? template.prompt);
  const withReasoning = parseSlots('template.completion', template.completion);
  const withoutReasoning = parseSlots(
    'template.completion',
    template.completionWithoutReasoning ?? template.completion,
  );
  for (const pieces of [prompt, promptWithoutInput]) checkPromptPieces('template.prompt', pieces);
  for (const pieces of [withReasoning, withoutReasoning]) checkCompletionPieces('template.completion', pieces);

  // A tokenizer that begins every text with BOS begins this one with it; a template that writes it itself is left alone.
  const bos: Segment[] =
    tokenizer.addsBos && tokenizer.bosToken !== undefined && !template.prompt.startsWith(tokenizer.bosToken)
      ? [{ kind: 'prompt', text: tokenizer.bosToken, special: true }]
      : [];
  const promptOf = (slots: Slots): Segment[] => {
    const pieces: readonly Piece[] = slots.input === undefined || slots.input === '' ? promptWithoutInput : prompt;
    return [...bos, ...renderPromptPieces(pieces, slots)];
  };

  return {
    endToken: tokenizer.eosToken,
    renderExample(row: Row): Segment[] {
      const slots = slotsOfRow(row);
      if (slots === undefined) throw needsChat(template.name);
      const completion = slots.reasoning === '' ? withoutReasoning : withReasoning;
      return [
        ...promptOf(slots),
        ...renderCompletionPieces(completion, slots),
        { kind: 'eos', text: tokenizer.eosToken, special: true },
      ];
    },
    renderPrompt(input: Slots | readonly Turn[], mode: ReasoningMode): RenderedPrompt {
      const asked = promptOf(promptSlots(slotsOfInput(input, template.name)));
      const segments = [...asked, ...reasoningSwitch(mode, asked, { withReasoning, withoutReasoning })];
      return { segments, startsInsideThink: endsInsideThink(segments) };
    },
  };
}

function slotsOfInput(input: Slots | readonly Turn[], name: string): Slots {
  if (!isTurns(input)) return input;
  const [only] = input;
  if (input.length !== 1 || only?.role !== 'user') throw needsChat(name);
  return { question: only.content };
}

export const isTurns = (input: Slots | readonly Turn[]): input is readonly Turn[] => Array.isArray(input);

const needsChat = (name: string): Failure =>
  new Failure(
    'invalid_argument',
    `template '${name}' holds one question and one answer; a longer conversation or a system message needs the model's chat template`,
    { reason: 'TEMPLATE_MISMATCH' },
  );
