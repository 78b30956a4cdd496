import { dataset } from '@medmesh/proto';
import { describe, expect, test } from 'vitest';
import { createRowMapper, erasedMark, type MappedRow } from './map-row.ts';

const { DropReasonCode } = dataset;
const limits = { maxFieldLength: 100, maxRowLength: 1000 };
const auto = (value: Record<string, unknown>): MappedRow => createRowMapper(undefined, limits).map({ value });
const mapping = (shape: NonNullable<dataset.ColumnMapping['shape']>) => createRowMapper({ shape, subject: '' }, limits);
const faultOf = (m: MappedRow): unknown => ('fault' in m ? m.fault : 'row');

describe('the shape of a row', () => {
  test('is found by the usual column names, whatever their case', () => {
    expect(auto({ Question: 'q', Complex_CoT: '', Response: 'r' })).toEqual({
      row: { shape: 'reasoning', question: 'q', reasoning: '', response: 'r' },
    });
    expect(auto({ question: 'q', complex_cot: 't', RESPONSE: 'r' })).toEqual({
      row: { shape: 'reasoning', question: 'q', reasoning: 't', response: 'r' },
    });
    expect(auto({ instruction: 'i', output: 'o' })).toEqual({
      row: { shape: 'instruction', instruction: 'i', input: '', output: 'o' },
    });
    expect(
      auto({
        messages: [
          { role: 'user', content: 'u' },
          { role: 'assistant', content: 'a' },
        ],
      }),
    ).toEqual({
      row: {
        shape: 'conversation',
        turns: [
          { role: 'user', content: 'u' },
          { role: 'assistant', content: 'a' },
        ],
      },
    });
    expect(
      auto({
        conversations: [
          { from: 'human', value: 'u' },
          { from: 'gpt', value: 'a' },
        ],
      }),
    ).toMatchObject({ row: { shape: 'conversation' } });
  });

  test('is decided by the first row that has one', () => {
    const mapper = createRowMapper(undefined, limits);
    expect(faultOf(mapper.map({ value: { text: 'x' } }))).toBe(DropReasonCode.MISSING_FIELD);
    expect(mapper.shapeMissing).toBe(true);
    expect(mapper.map({ value: { instruction: 'i', output: 'o' } })).toMatchObject({ row: { shape: 'instruction' } });
    expect(mapper.shapeMissing).toBe(false);
    expect(faultOf(mapper.map({ value: { Question: 'q', Complex_CoT: '', Response: 'r' } }))).toBe(
      DropReasonCode.MISSING_FIELD,
    );
  });

  test('can be given with other column names', () => {
    const mapper = mapping({ $case: 'instruction', value: { instruction: 'ask', input: '', output: 'answer' } });
    expect(mapper.map({ value: { ask: 'a', answer: 'b', Question: 'x' } })).toMatchObject({
      row: { instruction: 'a', output: 'b' },
    });
    expect([...mapper.wanted]).toEqual(['ask', 'input', 'answer']);
  });
});

describe('a row that cannot be used', () => {
  const reasoning = { Question: 'q', Complex_CoT: 't', Response: 'r' };
  test.each([
    ['a missing field', { Question: 'q', Complex_CoT: 't' }, 'MISSING_FIELD'],
    ['a field that is null', { ...reasoning, Response: null }, 'MISSING_FIELD'],
    ['an empty field', { ...reasoning, Question: '' }, 'EMPTY_FIELD'],
    ['a blank field', { ...reasoning, Response: ' \n\u3000' }, 'EMPTY_FIELD'],
    ['a number', { ...reasoning, Response: 42 }, 'NOT_TEXT'],
    ['a list', { ...reasoning, Complex_CoT: ['t'] }, 'NOT_TEXT'],
    ['an object', { ...reasoning, Question: { text: 'q' } }, 'NOT_TEXT'],
    ['a field beyond the limit', { ...reasoning, Complex_CoT: 'x'.repeat(101) }, 'FIELD_TOO_LARGE'],
    ['half a surrogate pair', { ...reasoning, Question: 'q\ud83d' }, 'BAD_ENCODING'],
  ] as const)('has a reason: %s', (_, value, code) => {
    const mapper = mapping({ $case: 'reasoning', value: { question: '', reasoning: '', response: '' } });
    expect(faultOf(mapper.map({ value }))).toBe(DropReasonCode[code]);
  });

  test('by reasoning that is absent, but not by reasoning that is null', () => {
    const mapper = mapping({ $case: 'reasoning', value: { question: '', reasoning: '', response: '' } });
    expect(faultOf(mapper.map({ value: { Question: 'q', Response: 'r' } }))).toBe(DropReasonCode.MISSING_FIELD);
    expect(faultOf(mapper.map({ value: { ...reasoning, Complex_CoT: null } }))).toBe('row');
  });
});

test('a row whose subject was erased is told as such, and says nothing about the shape', () => {
  const mapper = createRowMapper(undefined, limits);
  expect(mapper.map({ value: { [erasedMark]: true } })).toEqual({ fault: DropReasonCode.ERASED });
  expect(mapper.shapeMissing).toBe(false);
});

describe('a conversation', () => {
  const said = (...turns: unknown[]): MappedRow => auto({ messages: turns });
  const user = { role: 'user', content: 'u' };
  const assistant = { role: 'assistant', content: 'a' };

  test('may hold reasoning inside or beside the answer', () => {
    const expected = { row: { shape: 'conversation', turns: [user, { ...assistant, reasoning: 'why' }] } };
    expect(said(user, { role: 'assistant', content: '<think>\nwhy\n</think>\n\na' })).toEqual(expected);
    expect(said(user, { ...assistant, reasoning_content: 'why' })).toEqual(expected);
    expect(said(user, { role: 'assistant', content: 'a </think> b' })).toEqual({
      row: { shape: 'conversation', turns: [user, { role: 'assistant', content: 'a </think> b' }] },
    });
  });

  test('may come as JSON text, and ends with its last answer', () => {
    expect(auto({ messages: JSON.stringify([user, assistant, user]) })).toEqual({
      row: { shape: 'conversation', turns: [user, assistant] },
    });
  });

  test.each([
    ['no list', 'hello', 'NOT_TEXT'],
    ['an empty list', [], 'EMPTY_FIELD'],
    ['a message that is no object', ['hi'], 'NOT_TEXT'],
    ['an unknown role', [user, { role: 'narrator', content: 'x' }], 'NOT_TEXT'],
    ['a message without a role', [{ content: 'x' }, assistant], 'MISSING_FIELD'],
    ['a message without content', [{ role: 'user' }, assistant], 'MISSING_FIELD'],
    ['no answer', [user], 'MISSING_FIELD'],
    ['no question', [assistant], 'MISSING_FIELD'],
    ['an empty message', [{ role: 'user', content: ' ' }, assistant], 'EMPTY_FIELD'],
  ] as const)('has a reason: %s', (_, messages, code) => {
    expect(faultOf(auto({ messages }))).toBe(DropReasonCode[code]);
  });
});
