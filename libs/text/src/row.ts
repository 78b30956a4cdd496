/** Who speaks in a conversation. */
export type Role = 'system' | 'user' | 'assistant';

/** One message. `reasoning` is an assistant's, apart from its answer. */
export type Turn = { readonly role: Role; readonly content: string; readonly reasoning?: string };

/** One training example as data, in one of the three shapes of a dataset. */
export type Row =
  | { readonly shape: 'reasoning'; readonly question: string; readonly reasoning: string; readonly response: string }
  | { readonly shape: 'instruction'; readonly instruction: string; readonly input: string; readonly output: string }
  | { readonly shape: 'conversation'; readonly turns: readonly Turn[] };

/** Names a template can use between `{{` and `}}`. */
export const slotNames = ['question', 'reasoning', 'response', 'instruction', 'input', 'output'] as const;
export type SlotName = (typeof slotNames)[number];

/** Slots that carry what the model is asked; the others carry what it shall write. */
export const promptSlotNames: readonly SlotName[] = ['question', 'instruction', 'input'];

export type Slots = Partial<Record<SlotName, string>>;

/** Every slot of a question, whichever shape it came in: an instruction with an input is also a question. */
export function promptSlots(slots: Slots): Slots {
  const instruction = slots.instruction ?? slots.question;
  const question = slots.question ?? joinInput(slots.instruction, slots.input);
  return {
    input: '',
    ...slots,
    ...(instruction === undefined ? {} : { instruction }),
    ...(question === undefined ? {} : { question }),
  };
}

/** Every slot of a row. Undefined for a conversation that is more than one question and its answer. */
export function slotsOfRow(row: Row): Required<Slots> | undefined {
  switch (row.shape) {
    case 'reasoning':
      return allSlots({ question: row.question }, row.reasoning, row.response);
    case 'instruction':
      return allSlots({ instruction: row.instruction, input: row.input }, '', row.output);
    case 'conversation': {
      const [user, assistant] = row.turns;
      if (row.turns.length !== 2 || user?.role !== 'user' || assistant?.role !== 'assistant') return undefined;
      return allSlots({ question: user.content }, assistant.reasoning ?? '', assistant.content);
    }
  }
}

/** A row as a conversation, for chat templates. */
export function turnsOfRow(row: Row): readonly Turn[] {
  if (row.shape === 'conversation') return row.turns;
  const slots = slotsOfRow(row)!;
  return [
    { role: 'user', content: slots.question },
    { role: 'assistant', content: slots.response, reasoning: slots.reasoning },
  ];
}

function allSlots(asked: Slots, reasoning: string, response: string): Required<Slots> {
  const prompt = promptSlots(asked) as Required<Pick<Slots, 'question' | 'instruction' | 'input'>>;
  return { ...prompt, reasoning, response, output: response };
}

function joinInput(instruction: string | undefined, input: string | undefined): string | undefined {
  if (instruction === undefined) return undefined;
  return input === undefined || input === '' ? instruction : `${instruction}\n\n${input}`;
}
