import { invalidField } from '@medmesh/errors';
import type { dataset } from '@medmesh/proto';
import {
  encodeSegments,
  mergeRuns,
  type Role,
  type Row,
  resolveTemplate,
  type Segment,
  type SlotName,
  type Slots,
  slotNames,
  type Turn,
  textOf,
} from '@medmesh/text';
import type { FormatterDeps } from './deps.ts';

const roles: readonly string[] = ['system', 'user', 'assistant'] satisfies Role[];
const bounds = { textBytes: 2 ** 20, messages: 1024 } as const;

/** Renders a template with given values: the training example, or the prompt alone. */
export async function renderTemplate(
  deps: Pick<FormatterDeps, 'tokenizers'>,
  request: dataset.RenderTemplateRequest,
  signal: AbortSignal,
): Promise<dataset.RenderTemplateResponse> {
  const slots = checkSlots(request.slots);
  const turns = checkMessages(request.messages);
  if (turns.length > 0 && Object.keys(slots).length > 0)
    throw invalidField('messages', 'give either messages or slots');
  const { tokenizer } = await deps.tokenizers.get(request.model, signal);
  const template = resolveTemplate(request.template, tokenizer);
  const asked = turns.length === 0 ? slots : request.promptOnly ? turns : turns.slice(0, -1);
  const prompt = template.renderPrompt(asked);
  const segments = mergeRuns(request.promptOnly ? prompt.segments : template.renderExample(rowOf(slots, turns)));
  const [encoded] = await encodeSegments(tokenizer, [segments]);
  return {
    text: textOf(segments),
    spans: spansOf(segments),
    tokenIds: [...encoded!.ids],
    startsInsideThink: prompt.startsInsideThink,
    templateDigest: template.digest,
  };
}

function checkSlots(given: Readonly<Record<string, string>>): Slots {
  const entries = Object.entries(given);
  const unknown = entries.find(([name]) => !slotNames.includes(name as SlotName));
  if (unknown !== undefined)
    throw invalidField('slots', `there is no slot ${unknown[0].slice(0, 60)}; the slots are ${slotNames.join(', ')}`);
  const long = entries.find(([, text]) => Buffer.byteLength(text) > bounds.textBytes);
  if (long !== undefined) throw invalidField(`slots.${long[0]}`, `has more than ${bounds.textBytes} bytes`);
  return Object.fromEntries(entries) as Slots;
}

function checkMessages(messages: readonly dataset.ChatMessage[]): Turn[] {
  if (messages.length > bounds.messages)
    throw invalidField('messages', `has ${messages.length} messages; at most ${bounds.messages} are accepted`);
  return messages.map(({ role, content, reasoning }, i) => {
    if (!roles.includes(role)) throw invalidField(`messages[${i}].role`, 'use system, user or assistant');
    return { role: role as Role, content, ...(reasoning === '' ? {} : { reasoning }) };
  });
}

function rowOf(slots: Slots, turns: readonly Turn[]): Row {
  if (turns.length > 0) return { shape: 'conversation', turns };
  const response = slots.response ?? slots.output;
  if (response === undefined)
    throw invalidField(
      'slots',
      'a training example needs response (or output); set prompt_only to render the prompt alone',
    );
  if (slots.question === undefined && slots.instruction !== undefined && slots.reasoning === undefined) {
    return { shape: 'instruction', instruction: slots.instruction, input: slots.input ?? '', output: response };
  }
  return {
    shape: 'reasoning',
    question: slots.question ?? slots.instruction ?? '',
    reasoning: slots.reasoning ?? '',
    response,
  };
}

/** Neighbours of one kind are one span, whoever wrote them. */
function spansOf(segments: readonly Segment[]): dataset.RenderedSpan[] {
  const spans: dataset.RenderedSpan[] = [];
  let at = 0;
  for (const { kind, text } of segments) {
    const last = spans.at(-1);
    if (last?.kind === kind) last.end += text.length;
    else spans.push({ kind, start: at, end: at + text.length });
    at += text.length;
  }
  return spans;
}
