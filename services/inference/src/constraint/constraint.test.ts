import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { accepts, compilePattern } from './automaton.ts';
import { createConstraintCompiler } from './compiler.ts';
import { parseConstraint } from './parse-constraint.ts';

const regex = (source: string) => compilePattern(parseConstraint({ $case: 'regex', value: source }), 'regex');
const schema = (value: unknown) =>
  compilePattern(parseConstraint({ $case: 'jsonSchema', value: JSON.stringify(value) }), 'json_schema');

describe('a regular expression', () => {
  const sources = [
    'a',
    'a*b+c?',
    '(ab|cd){2,3}',
    '[^a-c\\n]{1,4}',
    '\\d{1,3}(\\.\\d+)?',
    'x{2,}y{0,2}',
    '(a|b)*abb',
    '[à-ÿ€-₿😀-😃]+',
    '.{0,3}',
    '\\u{1F600}|\\x41\\u0042',
    '(?:yes|no)(, (?<why>because .{1,5}))?',
    '^(A|B|C|D)$',
    '[\\w-]+',
    '[^]]',
    '\\[\\]\\{\\}',
    '((a?){3}b?){2}',
  ];
  for (const source of sources.filter((s) => s !== '[^]]')) {
    test(`${source} accepts what JavaScript matches, over random texts near and far`, () => {
      const automaton = regex(source);
      const judge = new RegExp(`^(?:${source.replace(/^\^|\$$/g, '')})$`, 'u');
      const near = fc.stringMatching(judge);
      const far = fc.string({ unit: 'grapheme', maxLength: 6 });
      const small = fc.string({
        unit: fc.constantFrom('a', 'b', 'c', 'd', '1', '.', ' ', 'é', '€', '😀'),
        maxLength: 8,
      });
      fc.assert(
        fc.property(fc.oneof(near, far, small), (text) => {
          expect(accepts(automaton, text)).toBe(judge.test(text));
        }),
        { numRuns: 300, seed: 7 },
      );
    });
  }

  test('reads every code point of a class as its UTF-8 and no other bytes', () => {
    const automaton = regex('[\\u0000-\\u{10FFFF}]');
    for (const code of [0, 0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xffff, 0x1_0000, 0x10_ffff])
      expect(accepts(automaton, String.fromCodePoint(code))).toBe(true);
    const step = (bytes: number[]) =>
      bytes.reduce(
        (s, b) => (s === 0xffff_ffff ? s : automaton.next[s * automaton.classes + automaton.classOf[b]!]!),
        0,
      );
    for (const bad of [[0x80], [0xc0], [0xc1], [0xf5], [0xed, 0xa0], [0xf4, 0x90], [0xe0, 0x80]])
      expect(step(bad)).toBe(0xffff_ffff);
  });

  test.each([
    ['(a', 'without its'],
    ['a)', 'without its'],
    ['a**', 'repeats a repetition'],
    ['(?=a)', 'look-around'],
    ['(a)\\1', 'back reference'],
    ['\\bfoo', 'word boundary'],
    ['\\p{L}', 'Unicode property'],
    ['a{3,1}', 'end is before'],
    ['a^b', 'at the ends only'],
    ['^a|b$', 'put the alternatives in a group'],
    ['[z-a]', 'range that is none'],
    ['[^\\s\\S]', 'class of no characters'],
    ['a{', 'no count'],
    ['\\', 'ends too early'],
    ['('.repeat(100), 'groups in each other'],
    ['a{999999}', 'states'],
    ['(a{1000}){1000}', 'states'],
    ['(a|b)*a(a|b){20}', 'states'],
    ['((((.{0,30}){0,30}){0,30}){0,30}){0,30}', 'states'],
  ])('%s is refused, saying why', (source, why) => {
    expect(() => regex(source)).toThrow(why);
  });
});

describe('a JSON schema', () => {
  const person = {
    type: 'object',
    properties: {
      name: { type: 'string', minLength: 1, maxLength: 5 },
      age: { type: 'integer', minimum: 0, maximum: 130 },
      tags: { type: 'array', items: { enum: ['a', 'b', 3, null] }, maxItems: 3 },
      near: { anyOf: [{ type: 'null' }, { $ref: '#/$defs/place' }] },
    },
    required: ['name', 'age'],
    additionalProperties: false,
    $defs: { place: { type: 'object', properties: { x: { type: 'number' } }, required: ['x'] } },
  };

  test('accepts its values in its order and nothing else', () => {
    const automaton = schema(person);
    const good = [
      '{"name":"Ann","age":7}',
      '{"name": "Ann", "age": 130, "tags": ["a", 3, null], "near": null}',
      '{"name":"\\"\\\\é😀\\u00e9","age":0,"near":{"x":-1.5e-3}}',
      '{"name":"A","age":99,"tags":[]}',
    ];
    const bad = [
      '{"age":7,"name":"Ann"}',
      '{"name":"","age":7}',
      '{"name":"toolong","age":7}',
      '{"name":"Ann","age":131}',
      '{"name":"Ann","age":07}',
      '{"name":"Ann"}',
      '{"name":"Ann","age":7,}',
      '{"name":"Ann","age":7,"tags":["a","a","a","a"]}',
      '{"name":"A\n","age":7}',
      '{"name":"Ann","age":7,"other":1}',
      '{"name":"\\ud800","age":7}',
      '',
    ];
    for (const text of good) expect([text, accepts(automaton, text)]).toEqual([text, true]);
    for (const text of bad) expect([text, accepts(automaton, text)]).toEqual([text, false]);
  });

  test('allows exactly the integers between its bounds', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: -1200, max: 1200 }),
        fc.nat(2000),
        fc.integer({ min: -3500, max: 3500 }),
        (low, span, n) => {
          const automaton = schema({ type: 'integer', minimum: low, maximum: low + span });
          expect(accepts(automaton, String(n))).toBe(n >= low && n <= low + span);
          expect(accepts(automaton, '-0')).toBe(false);
        },
      ),
      { numRuns: 200, seed: 3 },
    );
  });

  test('all optional properties may be there or not, with commas in the right places', () => {
    const names = ['a', 'b', 'c', 'd'];
    const automaton = schema({ properties: Object.fromEntries(names.map((n) => [n, { const: 1 }])) });
    for (let bits = 0; bits < 16; bits += 1) {
      const chosen = names.filter((_, i) => (bits >> i) & 1);
      expect(accepts(automaton, JSON.stringify(Object.fromEntries(chosen.map((n) => [n, 1]))))).toBe(true);
    }
    expect(accepts(automaton, '{,"a":1}')).toBe(false);
    expect(accepts(automaton, '{"a":1"b":1}')).toBe(false);
  });

  test('a value of no given shape is any JSON of bounded depth', () => {
    const automaton = schema({ type: 'object' });
    const json = fc
      .json({ depthSize: 'small', maxDepth: 3, stringUnit: 'grapheme' })
      .map((text) => `{"v":${JSON.stringify(JSON.parse(text))}}`);
    fc.assert(
      fc.property(json, (text) => {
        // Numbers beyond a double's digits and exponents of three digits are left out on purpose.
        fc.pre(!/\d{16}|[eE][+-]?\d{3}|\\u[dD][89a-fA-F]/.test(text));
        expect(accepts(automaton, text)).toBe(true);
      }),
      { numRuns: 200, seed: 5 },
    );
  });

  test('a pattern is searched for unless it is anchored, and escaped where a string needs it', () => {
    expect(accepts(schema({ type: 'string', pattern: 'b"' }), '"ab\\"c"')).toBe(true);
    expect(accepts(schema({ type: 'string', pattern: '^b$' }), '"ab"')).toBe(false);
    expect(accepts(schema({ type: 'string', format: 'date' }), '"2026-02-30"')).toBe(true);
    expect(accepts(schema({ type: 'string', format: 'date' }), '"2026-13-30"')).toBe(false);
  });

  test.each([
    [{ $ref: '#' }, 'comes back to itself'],
    [{ $ref: 'https://example.org/x' }, 'outside the schema'],
    [{ $ref: '#/$defs/none' }, 'not there'],
    [{ type: 'array', uniqueItems: true }, 'uniqueItems'],
    [{ type: 'number', maximum: 3 }, 'bounds a number'],
    [{ oneOf: [{ type: 'string' }] }, '#/oneOf is not supported'],
    [{ type: 'object', properties: { a: { not: {} } } }, '#/properties/0/not'],
    [{ type: 'integer', minimum: 3, maximum: 2 }, 'allows no integer'],
    [{ type: 'string', maxLength: 1_000_000 }, 'states'],
    [{ type: 'object', required: ['x'], properties: {} }, 'not described'],
    [false, 'no schema'],
    [{ enum: [] }, 'allows 0 values'],
  ])('%j is refused, saying where', (value, why) => {
    expect(() => schema(value)).toThrow(why as string);
  });
});

describe('the compiler', () => {
  const compiler = createConstraintCompiler();
  afterAll(() => compiler.close());
  const signal = new AbortController().signal;

  test('answers on its own thread, and refuses what is wrong without the text of the constraint', async () => {
    const automaton = await compiler.compile({ $case: 'choices', value: { options: ['yes', 'no'] } }, false, signal);
    expect(accepts(automaton, 'yes') && accepts(automaton, 'no') && !accepts(automaton, 'n')).toBe(true);
    const after = await compiler.compile({ $case: 'choices', value: { options: ['yes'] } }, true, signal);
    expect(accepts(after, '\n\nyes') && accepts(after, 'yes')).toBe(true);
    await expect(compiler.compile({ $case: 'regex', value: '(secret' }, false, signal)).rejects.toMatchObject({
      code: 'invalid_argument',
      reason: 'CONSTRAINT_INVALID',
      message: expect.not.stringContaining('secret'),
    });
  });

  test('refuses hostile constraints in bounded time and goes on with the next', { timeout: 60_000 }, async () => {
    const bomb = { $case: 'regex' as const, value: '(.*a.{9}){3}(x|.*b.{12})' };
    await expect(compiler.compile(bomb, false, signal)).rejects.toMatchObject({ reason: 'CONSTRAINT_INVALID' });
    const doubling = Array.from({ length: 40 }, (_, i) => [
      `d${i}`,
      { type: 'array', minItems: 2, maxItems: 2, items: { $ref: `#/$defs/d${i + 1}` } },
    ]);
    const schemaBomb = { $ref: '#/$defs/d0', $defs: { ...Object.fromEntries(doubling), d40: { type: 'null' } } };
    await expect(
      compiler.compile({ $case: 'jsonSchema', value: JSON.stringify(schemaBomb) }, false, signal),
    ).rejects.toMatchObject({ reason: 'CONSTRAINT_INVALID' });
    await compiler.compile({ $case: 'choices', value: { options: ['yes'] } }, false, signal);
  });
});
