import {
  type Characters,
  characters,
  complement,
  constraintFailure,
  either,
  lastCodePoint,
  limits,
  nothing,
  type Pattern,
  repeat,
  sequence,
} from './pattern.ts';

const digits: Characters = [[0x30, 0x39]];
const wordCharacters: Characters = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
];
const spaces: Characters = [
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
const lineEnds: Characters = [
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
];
const classes: Readonly<Record<string, Characters>> = {
  d: digits,
  D: complement(digits),
  w: wordCharacters,
  W: complement(wordCharacters),
  s: spaces,
  S: complement(spaces),
};
const controls: Readonly<Record<string, number>> = { n: 0x0a, r: 0x0d, t: 0x09, f: 0x0c, v: 0x0b, 0: 0 };

const one = (codePoint: number): Characters => [[codePoint, codePoint]];

export type ParsedRegex = {
  readonly pattern: Pattern;
  /** Whether it begins with `^` and ends with `$`. */
  readonly anchoredStart: boolean;
  readonly anchoredEnd: boolean;
};

/**
 * Reads a regular expression in JavaScript's notation with the `u` flag. What no automaton can do (back references, look-around, `\b`) and what
 * is not implemented (`\p`) is refused. `^` and `$` are taken at the ends only. Lazy quantifiers describe the same texts as greedy ones.
 */
export function parseRegex(source: string, where: string): ParsedRegex {
  if (source.length > limits.sourceLength)
    throw constraintFailure(where, `has ${source.length} characters; at most ${limits.sourceLength}`);
  const text = Array.from(source);
  let at = 0;
  const fail = (what: string) => constraintFailure(where, `${what} (at character ${at})`);
  const peek = () => text[at];
  const take = () => {
    const next = text[at];
    if (next === undefined) throw fail('ends too early');
    at += 1;
    return next;
  };
  const eat = (expected: string) => {
    if (!text.slice(at, at + expected.length).every((c, i) => c === expected[i]) || at + expected.length > text.length)
      return false;
    at += expected.length;
    return true;
  };

  const hex = (count: number) => {
    const digitsText = text.slice(at, at + count).join('');
    if (!/^[0-9a-fA-F]+$/.test(digitsText) || digitsText.length !== count) throw fail(`needs ${count} hex digits`);
    at += count;
    return Number.parseInt(digitsText, 16);
  };

  const escapeSequence = (inClass: boolean): Characters => {
    const c = take();
    const known = classes[c];
    if (known !== undefined) return known;
    const control = controls[c];
    if (control !== undefined) return one(control);
    if (c === 'x') return one(hex(2));
    if (c === 'u') {
      if (!eat('{')) return one(hex(4));
      const end = text.indexOf('}', at);
      const digitsText = end < 0 ? '' : text.slice(at, end).join('');
      if (!/^[0-9a-fA-F]{1,6}$/.test(digitsText) || Number.parseInt(digitsText, 16) > lastCodePoint)
        throw fail('has a \\u{…} that is no character');
      at = end + 1;
      return one(Number.parseInt(digitsText, 16));
    }
    if (/[1-9k]/.test(c)) throw fail('has a back reference, which no automaton can follow');
    if (c === 'b' && inClass) return one(0x08);
    if (c === 'b' || c === 'B') throw fail(`has \\${c}, a word boundary, which is not supported`);
    if (c === 'p' || c === 'P') throw fail(`has \\${c}, a Unicode property, which is not supported; name the ranges`);
    if (/[a-zA-Z]/.test(c)) throw fail(`has \\${c}, which is not known`);
    return one(c.codePointAt(0) ?? 0);
  };

  const classItem = (): Characters => {
    const c = take();
    return c === '\\' ? escapeSequence(true) : one(c.codePointAt(0) ?? 0);
  };

  const characterClass = (): Pattern => {
    const negated = eat('^');
    const set: [number, number][] = [];
    while (peek() !== ']') {
      if (peek() === undefined) throw fail('has a [ without its ]');
      const first = classItem();
      const from = first[0];
      if (peek() === '-' && text[at + 1] !== ']' && text[at + 1] !== undefined) {
        at += 1;
        const to = classItem()[0];
        const single = first.length === 1 && from !== undefined && from[0] === from[1];
        if (!single || to === undefined || to[0] !== to[1] || to[0] < from[0]) throw fail('has a range that is none');
        set.push([from[0], to[0]]);
      } else {
        set.push(...first.map(([a, b]): [number, number] => [a, b]));
      }
    }
    at += 1;
    const chosen = negated ? complement(set) : set;
    if (chosen.length === 0) throw fail('has a class of no characters');
    return characters(chosen);
  };

  const atom = (depth: number): Pattern => {
    const c = take();
    if (c === '(') {
      if (eat('?')) {
        const named = /^<[A-Za-z_]\w*>/.exec(text.slice(at, at + 80).join(''));
        if (named !== null) at += named[0].length;
        else if (!eat(':')) throw fail('has look-around or a flag group, which is not supported');
      }
      const inner = alternatives(depth + 1);
      if (!eat(')')) throw fail('has a ( without its )');
      return inner;
    }
    if (c === '[') return characterClass();
    if (c === '.') return characters(complement(lineEnds));
    if (c === '\\') return characters(escapeSequence(false));
    if (c === '^' || c === '$') throw fail(`has ${c} inside; it is taken at the ends only`);
    if ('*+?{}])'.includes(c)) throw fail(`has ${c} where nothing can be repeated or closed; write \\${c} for itself`);
    return characters(one(c.codePointAt(0) ?? 0));
  };

  const quantified = (depth: number): Pattern => {
    let part = atom(depth);
    let count = 0;
    for (;;) {
      const c = peek();
      let bounds: [number, number] | undefined;
      if (c === '*') bounds = [0, Number.POSITIVE_INFINITY];
      else if (c === '+') bounds = [1, Number.POSITIVE_INFINITY];
      else if (c === '?') bounds = [0, 1];
      if (bounds !== undefined) {
        at += 1;
      } else if (c === '{') {
        const match = /^\{(\d{1,6})(,(\d{1,6})?)?\}/.exec(text.slice(at, at + 20).join(''));
        if (match === null) throw fail('has a { that is no count; write \\{ for itself');
        at += match[0].length;
        const least = Number(match[1]);
        const most =
          match[2] === undefined ? least : match[3] === undefined ? Number.POSITIVE_INFINITY : Number(match[3]);
        if (most < least) throw fail('has a count whose end is before its beginning');
        bounds = [least, most];
      } else {
        return part;
      }
      count += 1;
      if (count > 1) throw fail('repeats a repetition; put it in a group');
      eat('?');
      part = repeat(part, ...bounds);
    }
  };

  const alternatives = (depth: number): Pattern => {
    if (depth > limits.depth) throw fail(`has more than ${limits.depth} groups in each other`);
    const options: Pattern[] = [];
    let parts: Pattern[] = [];
    for (;;) {
      const c = peek();
      if (c === undefined || c === ')' || c === '|' || (c === '$' && at === text.length - 1)) {
        options.push(parts.length === 0 ? nothing : sequence(...parts));
        parts = [];
        if (c !== '|') return options.length === 1 && options[0] !== undefined ? options[0] : either(...options);
        at += 1;
      } else {
        parts.push(quantified(depth));
      }
    }
  };

  const anchoredStart = eat('^');
  const pattern = alternatives(0);
  const anchoredEnd = eat('$');
  if (at < text.length) throw fail('has a ) without its (');
  // `^a|b$` anchors each side alone, which whoever writes it seldom means.
  if ((anchoredStart || anchoredEnd) && pattern.kind === 'either') {
    throw constraintFailure(where, 'has ^ or $ beside a | outside of groups; put the alternatives in a group');
  }
  return { pattern, anchoredStart, anchoredEnd };
}
