import { dataset } from '@medmesh/proto';
import type { Role, Row, Turn } from '@medmesh/text';
import type { DropCode, RawRow, RowLimits } from '../rows/raw-row.ts';

const { DropReasonCode } = dataset;

/** A row's data, or the reason why it cannot be used. */
export type MappedRow = { readonly row: Row } | { readonly fault: DropCode };

export type RowMapper = {
  /** Columns the mapper may ask for, in lower case. */
  readonly wanted: ReadonlySet<string>;
  map(raw: RawRow): MappedRow;
  /** Whether rows were read and none of them had the columns of a known shape. */
  readonly shapeMissing: boolean;
};

type Shape = {
  readonly needed: readonly string[];
  readonly columns: readonly string[];
  map(fields: Fields): MappedRow;
};

type Fields = Readonly<Record<string, unknown>>;

const roles: Readonly<Record<string, Role>> = {
  system: 'system',
  user: 'user',
  human: 'user',
  assistant: 'assistant',
  gpt: 'assistant',
  bot: 'assistant',
  model: 'assistant',
};

/** Longest list of messages in one row. */
const maxMessages = 1000;

/** Stands where a row was whose subject was erased. */
export const erasedMark = 'medmesh.erased';

const fault = (code: DropCode): MappedRow => ({ fault: code });
const isFault = (v: string | MappedRow): v is MappedRow => typeof v !== 'string';

/**
 * Maps a file's rows to training rows. Without a mapping in the spec, the first row that has all columns of a known
 * shape decides for the whole version; rows before it lack their fields.
 */
export function createRowMapper(mapping: dataset.ColumnMapping | undefined, limits: RowLimits): RowMapper {
  const candidates = mapping?.shape === undefined ? usualShapes(limits) : [shapeOf(mapping.shape, limits)];
  let chosen = mapping?.shape === undefined ? undefined : candidates[0];
  let objectSeen = false;
  return {
    wanted: new Set(candidates.flatMap((s) => s.columns).map((name) => name.toLowerCase())),
    get shapeMissing() {
      return chosen === undefined && objectSeen;
    },
    map(raw) {
      if ('fault' in raw) return raw;
      if (raw.value[erasedMark] === true) return fault(DropReasonCode.ERASED);
      objectSeen = true;
      chosen ??= candidates.find((s) => s.needed.every((name) => column(raw.value, name) !== undefined));
      return chosen === undefined ? fault(DropReasonCode.MISSING_FIELD) : chosen.map(raw.value);
    },
  };
}

function usualShapes(limits: RowLimits): Shape[] {
  const empty = { question: '', reasoning: '', response: '', instruction: '', input: '', output: '' };
  return [
    shapeOf({ $case: 'reasoning', value: empty }, limits),
    shapeOf({ $case: 'instruction', value: empty }, limits),
    shapeOf({ $case: 'conversation', value: { messages: 'messages' } }, limits),
    shapeOf({ $case: 'conversation', value: { messages: 'conversations' } }, limits),
  ];
}

function shapeOf(shape: NonNullable<dataset.ColumnMapping['shape']>, limits: RowLimits): Shape {
  switch (shape.$case) {
    case 'reasoning': {
      const { question, reasoning, response } = shape.value;
      return reasoningShape(question || 'Question', reasoning || 'Complex_CoT', response || 'Response', limits);
    }
    case 'instruction': {
      const { instruction, input, output } = shape.value;
      return instructionShape(instruction || 'instruction', input || 'input', output || 'output', limits);
    }
    case 'conversation':
      return conversationShape(
        shape.value.messages === '' ? ['messages', 'conversations'] : [shape.value.messages],
        limits,
      );
  }
}

function reasoningShape(question: string, reasoning: string, response: string, limits: RowLimits): Shape {
  return {
    needed: [question, reasoning, response],
    columns: [question, reasoning, response],
    map(fields) {
      const q = neededText(column(fields, question), limits);
      if (isFault(q)) return q;
      // The reasoning must be there but may hold nothing.
      const given = column(fields, reasoning);
      if (given === undefined) return fault(DropReasonCode.MISSING_FIELD);
      const thought = optionalText(given, limits);
      if (isFault(thought)) return thought;
      const answer = neededText(column(fields, response), limits);
      if (isFault(answer)) return answer;
      return { row: { shape: 'reasoning', question: q, reasoning: thought, response: answer } };
    },
  };
}

function instructionShape(instruction: string, input: string, output: string, limits: RowLimits): Shape {
  return {
    needed: [instruction, output],
    columns: [instruction, input, output],
    map(fields) {
      const asked = neededText(column(fields, instruction), limits);
      if (isFault(asked)) return asked;
      const further = optionalText(column(fields, input), limits);
      if (isFault(further)) return further;
      const answer = neededText(column(fields, output), limits);
      if (isFault(answer)) return answer;
      return { row: { shape: 'instruction', instruction: asked, input: further, output: answer } };
    },
  };
}

function conversationShape(names: readonly string[], limits: RowLimits): Shape {
  return {
    needed: names.slice(0, 1),
    columns: names,
    map(fields) {
      const held = names.map((name) => column(fields, name)).find((v) => v !== undefined);
      if (held === undefined || held === null) return fault(DropReasonCode.MISSING_FIELD);
      const list = typeof held === 'string' ? parseList(held) : held;
      if (!Array.isArray(list) || list.length > maxMessages) return fault(DropReasonCode.NOT_TEXT);
      if (list.length === 0) return fault(DropReasonCode.EMPTY_FIELD);
      const turns: Turn[] = [];
      for (const message of list) {
        const turn = mapTurn(message, limits);
        if ('fault' in turn) return turn;
        turns.push(turn);
      }
      // A conversation teaches by its answers: questions after the last answer have none.
      const last = turns.findLastIndex((t) => t.role === 'assistant');
      if (last < 0 || !turns.slice(0, last).some((t) => t.role === 'user')) return fault(DropReasonCode.MISSING_FIELD);
      return { row: { shape: 'conversation', turns: turns.slice(0, last + 1) } };
    },
  };
}

/** Columnar files and spreadsheets carry the list as JSON text. */
function parseList(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function mapTurn(message: unknown, limits: RowLimits): Turn | { fault: DropCode } {
  if (typeof message !== 'object' || message === null || Array.isArray(message))
    return { fault: DropReasonCode.NOT_TEXT };
  const fields = message as Fields;
  const said = column(fields, 'role') ?? column(fields, 'from');
  const content = column(fields, 'content') ?? column(fields, 'value');
  if (said === undefined || said === null) return { fault: DropReasonCode.MISSING_FIELD };
  const role = typeof said === 'string' ? roles[said.toLowerCase()] : undefined;
  if (role === undefined) return { fault: DropReasonCode.NOT_TEXT };
  const text = neededText(content, limits);
  if (isFault(text)) return text as { fault: DropCode };
  if (role !== 'assistant') return { role, content: text };
  const apart = optionalText(column(fields, 'reasoning_content') ?? column(fields, 'reasoning'), limits);
  if (isFault(apart)) return apart as { fault: DropCode };
  return apart === '' ? splitReasoning(text) : { role, content: text, reasoning: apart };
}

/** An assistant's message often carries its reasoning inside: `<think>…</think>` at its beginning. */
function splitReasoning(content: string): Turn {
  const end = content.indexOf('</think>');
  const begun = content.trimStart();
  if (end < 0 || !begun.startsWith('<think>')) return { role: 'assistant', content };
  const reasoning = content.slice(content.length - begun.length + '<think>'.length, end).trim();
  const answer = content.slice(end + '</think>'.length).trimStart();
  return answer === '' ? { role: 'assistant', content } : { role: 'assistant', content: answer, reasoning };
}

/** The column of a name: as written, else whatever its letters' case. */
function column(fields: Fields, name: string): unknown {
  if (Object.hasOwn(fields, name)) return fields[name];
  const lower = name.toLowerCase();
  const found = Object.keys(fields).find((key) => key.toLowerCase() === lower);
  return found === undefined ? undefined : fields[found];
}

function neededText(value: unknown, limits: RowLimits): string | MappedRow {
  if (value === undefined || value === null) return fault(DropReasonCode.MISSING_FIELD);
  const text = optionalText(value, limits);
  return !isFault(text) && text.trim() === '' ? fault(DropReasonCode.EMPTY_FIELD) : text;
}

function optionalText(value: unknown, limits: RowLimits): string | MappedRow {
  if (value === undefined || value === null) return '';
  if (typeof value !== 'string') return fault(DropReasonCode.NOT_TEXT);
  if (value.length > limits.maxFieldLength) return fault(DropReasonCode.FIELD_TOO_LARGE);
  // JSON can spell half of a surrogate pair; no encoding can.
  return value.isWellFormed() ? value : fault(DropReasonCode.BAD_ENCODING);
}
