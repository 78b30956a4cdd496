import {
  type Characters,
  characters,
  complement,
  either,
  intersect,
  joined,
  literal,
  nothing,
  optional,
  type Pattern,
  repeat,
  sequence,
} from './pattern.ts';

/** Characters that a JSON string holds as themselves. */
const plain = complement([
  [0, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
  [0xd800, 0xdfff],
]);
const digit: Characters = [[0x30, 0x39]];
const hexDigit: Characters = [
  [0x30, 0x39],
  [0x41, 0x46],
  [0x61, 0x66],
];
const shortEscapes: Readonly<Record<number, string>> = {
  8: '\\b',
  9: '\\t',
  10: '\\n',
  12: '\\f',
  13: '\\r',
  34: '\\"',
  92: '\\\\',
};

const hexDigits = (count: number) => repeat(characters(hexDigit), count, count);
/** `\uXXXX`, but for the halves of surrogate pairs: alone they are no character. */
const unicodeEscape = sequence(
  literal('\\u'),
  either(
    sequence(
      characters(
        intersect(
          hexDigit,
          complement([
            [0x44, 0x44],
            [0x64, 0x64],
          ]),
        ),
      ),
      hexDigits(3),
    ),
    sequence(
      characters([
        [0x44, 0x44],
        [0x64, 0x64],
      ]),
      characters([[0x30, 0x37]]),
      hexDigits(2),
    ),
  ),
);
/** One character of a JSON string. */
export const stringCharacter: Pattern = either(
  characters(plain),
  sequence(
    literal('\\'),
    characters(Array.from('"\\/bfnrt', (c): [number, number] => [c.charCodeAt(0), c.charCodeAt(0)])),
  ),
  unicodeEscape,
);

/** One space at most after a comma or colon, none elsewhere: texts stay short and there are no endless blanks. */
export const comma: Pattern = sequence(literal(','), optional(literal(' ')));
export const colon: Pattern = sequence(literal(':'), optional(literal(' ')));

export const quoted = (content: Pattern): Pattern => sequence(literal('"'), content, literal('"'));
export const anyString: Pattern = quoted(repeat(stringCharacter, 0, Number.POSITIVE_INFINITY));
export const boolean: Pattern = either(literal('true'), literal('false'));

/** Digits of a number: so many that a double holds them, and never without end. */
const maxDigits = 15;
const digits = (least: number, most: number) => repeat(characters(digit), least, most);
const magnitude = either(literal('0'), sequence(characters([[0x31, 0x39]]), digits(0, maxDigits - 1)));

export const anyInteger: Pattern = sequence(optional(literal('-')), magnitude);

/** A number; `signed` false: zero or more. */
export const anyNumber = (signed: boolean): Pattern =>
  sequence(
    signed ? optional(literal('-')) : nothing,
    magnitude,
    optional(sequence(literal('.'), digits(1, maxDigits))),
    optional(
      sequence(
        characters([
          [0x45, 0x45],
          [0x65, 0x65],
        ]),
        optional(
          characters([
            [0x2b, 0x2b],
            [0x2d, 0x2d],
          ]),
        ),
        digits(1, 2),
      ),
    ),
  );

/** Decimal numerals of one length from `low` to `high`, given as such. */
function numerals(low: string, high: string): Pattern {
  const [a, b] = [low.charCodeAt(0), high.charCodeAt(0)];
  const rest = low.length - 1;
  if (low === '') return nothing;
  if (/^0*$/.test(low.slice(1)) && /^9*$/.test(high.slice(1)))
    return sequence(characters([[a, b]]), digits(rest, rest));
  if (a === b) return sequence(characters([[a, a]]), numerals(low.slice(1), high.slice(1)));
  return either(
    sequence(characters([[a, a]]), numerals(low.slice(1), '9'.repeat(rest))),
    ...(b - a > 1 ? [sequence(characters([[a + 1, b - 1]]), digits(rest, rest))] : []),
    sequence(characters([[b, b]]), numerals('0'.repeat(rest), high.slice(1))),
  );
}

function naturals(low: number, high: number): Pattern {
  const options: Pattern[] = [];
  for (let length = String(low).length; length <= String(high).length; length += 1) {
    const least = length === 1 ? 0 : 10 ** (length - 1);
    options.push(numerals(String(Math.max(low, least)), String(Math.min(high, 10 ** length - 1))));
  }
  return either(...options);
}

/** Largest magnitude of an integer without bounds of its own. */
const largest = 10 ** maxDigits - 1;

/** Integers from `low` to `high`, both included; undefined when there are none. */
export function integersBetween(low: number | undefined, high: number | undefined): Pattern | undefined {
  const from = Math.max(low ?? -largest, -largest);
  const to = Math.min(high ?? largest, largest);
  if (from > to) return undefined;
  const options: Pattern[] = [];
  if (from < 0) options.push(sequence(literal('-'), naturals(Math.max(1, -to), -from)));
  if (to >= 0) options.push(naturals(Math.max(0, from), to));
  return either(...options);
}

/** What follows `[` in a list of `least` to `most` items. */
export function listBody(item: Pattern, least: number, most: number): Pattern {
  let items: Pattern;
  if (most === 0) items = nothing;
  else if (most === Number.POSITIVE_INFINITY && least <= 1) items = joined(item, comma);
  else items = sequence(item, repeat(sequence(comma, item), Math.max(0, least - 1), most - 1));
  return sequence(least === 0 ? optional(items) : items, literal(']'));
}

/** What follows `{` in an object of any keys with such values. */
export const mapBody = (value: Pattern): Pattern =>
  sequence(optional(joined(sequence(anyString, colon, value), comma)), literal('}'));

/** Strings that are none of `names`. Written without escapes, of which one name would have many spellings. */
export function otherStrings(names: readonly string[]): Pattern {
  const any = repeat(characters(plain), 0, Number.POSITIVE_INFINITY);
  const from = (rests: readonly string[]): Pattern => {
    const firsts = [...new Set(rests.flatMap((rest) => rest.codePointAt(0) ?? []))];
    const others = intersect(plain, complement(firsts.map((c): [number, number] => [c, c])));
    const options = [
      sequence(characters(others), any),
      ...firsts
        .filter((c) => intersect(plain, [[c, c]]).length > 0)
        .map((c) => {
          const text = String.fromCodePoint(c);
          const following = rests.filter((rest) => rest.startsWith(text)).map((rest) => rest.slice(text.length));
          return sequence(literal(text), from(following));
        }),
    ];
    return rests.includes('') ? either(...options) : either(nothing, ...options);
  };
  return quoted(from(names));
}

/** The texts of a pattern as they stand inside a JSON string: quotes, backslashes and controls escaped. */
export function escaped(pattern: Pattern): Pattern {
  switch (pattern.kind) {
    case 'characters': {
      const options: Pattern[] = [];
      const safe = intersect(pattern.set, plain);
      if (safe.length > 0) options.push(characters(safe));
      for (const [code, text] of Object.entries(shortEscapes)) {
        if (intersect(pattern.set, [[Number(code), Number(code)]]).length > 0) options.push(literal(text));
      }
      return either(...options);
    }
    case 'sequence':
      return sequence(...pattern.parts.map(escaped));
    case 'either':
      return either(...pattern.options.map(escaped));
    case 'repeat':
      return repeat(escaped(pattern.part), pattern.least, pattern.most);
    case 'joined':
      return joined(escaped(pattern.part), escaped(pattern.separator));
    case 'members':
    case 'bracket':
      throw new Error('a string holds no members and brackets of its own');
  }
}
