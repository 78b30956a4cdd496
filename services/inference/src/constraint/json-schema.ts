import {
  anyInteger,
  anyNumber,
  anyString,
  boolean,
  colon,
  comma,
  escaped,
  integersBetween,
  listBody,
  mapBody,
  otherStrings,
  quoted,
  stringCharacter,
} from './json-values.ts';
import { mayBothMatch } from './one-of.ts';
import { parseRegex } from './parse-regex.ts';
import {
  type BracketRule,
  bracket,
  constraintFailure,
  either,
  type Grammar,
  joined,
  limits,
  literal,
  membersOf,
  nothing,
  optional,
  type Pattern,
  repeat,
  sequence,
} from './pattern.ts';
import { isObject, type Schema } from './schema-object.ts';

/** Keywords that say nothing about which values are valid. */
const annotations = new Set([
  '$schema',
  '$id',
  '$comment',
  '$defs',
  'definitions',
  'title',
  'description',
  'default',
  'examples',
  'deprecated',
  'readOnly',
  'writeOnly',
  'format',
  'discriminator',
]);

/** Formats of numbers, which say how they are stored. */
const numberFormats = new Set(['int32', 'int64', 'float', 'double']);

const formats: Readonly<Record<string, string>> = {
  date: '\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\\d|3[01])',
  time: '([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)',
  'date-time':
    '\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\\d|3[01])T([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)',
  email: '[A-Za-z0-9._%+-]{1,64}@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\\.){1,8}[A-Za-z]{2,24}',
  hostname: '([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\\.){0,8}[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?',
  ipv4: '((25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)',
  uri: '[A-Za-z][A-Za-z0-9+.-]{0,30}:[!#$&-;=?-Z_a-z~]{1,}',
  uuid: '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}',
};

/**
 * The JSON texts that a schema describes, properties in the schema's order. Every text of the grammar is valid under the schema; not every valid value
 * is among them: properties that the schema does not name are written only where it describes them (`additionalProperties`). Lists and objects are
 * rules, so a schema may refer to itself. A keyword that cannot be kept to is refused, with its place.
 */
export function parseJsonSchema(source: string): Grammar {
  if (source.length > limits.sourceLength)
    throw constraintFailure('json_schema', `has ${source.length} characters; at most ${limits.sourceLength}`);
  let root: unknown;
  try {
    root = JSON.parse(source);
  } catch {
    throw constraintFailure('json_schema', 'is no JSON');
  }

  const resolve = (pointer: string, path: string): unknown => {
    if (pointer !== '#' && !pointer.startsWith('#/'))
      throw constraintFailure(path, 'refers outside the schema; only #/… is followed');
    let at: unknown = root;
    for (const raw of pointer.split('/').slice(1)) {
      const key = decodeURIComponent(raw).replaceAll('~1', '/').replaceAll('~0', '~');
      at = isObject(at) && Object.hasOwn(at, key) ? at[key] : undefined;
    }
    if (at === undefined) throw constraintFailure(path, 'refers to a place that is not there');
    return at;
  };

  /** Reads keywords and refuses those that nobody read. */
  const reader = (schema: Schema, path: string) => {
    const read = new Set<string>();
    return {
      get(keyword: string): unknown {
        read.add(keyword);
        return schema[keyword];
      },
      count(keyword: string): number | undefined {
        const value = this.get(keyword);
        if (value === undefined) return undefined;
        if (typeof value !== 'number' || !Number.isInteger(value) || value < 0)
          throw constraintFailure(`${path}/${keyword}`, 'is no count');
        return value;
      },
      number(keyword: string): number | undefined {
        const value = this.get(keyword);
        if (value !== undefined && (typeof value !== 'number' || !Number.isFinite(value)))
          throw constraintFailure(`${path}/${keyword}`, 'is no number');
        return value;
      },
      finish(): void {
        for (const keyword of Object.keys(schema)) {
          if (!read.has(keyword) && !annotations.has(keyword))
            throw constraintFailure(`${path}/${keyword}`, 'is not supported here; leave it out');
        }
      },
    };
  };
  type Reader = ReturnType<typeof reader>;

  const rules: BracketRule[] = [];
  const ruleNumbers = new Map<unknown, Map<string, number>>();
  /** What is left to do: bodies of rules are made one after the other, so that schemas may refer to each other in circles. */
  const todo: (() => void)[] = [];
  /** The rule of a bracket that `key` stands for. Its body is made once, later. */
  const ruleOf = (key: unknown, open: BracketRule['open'], body: () => Pattern): Pattern => {
    const numbers = ruleNumbers.get(key) ?? new Map<string, number>();
    ruleNumbers.set(key, numbers);
    const known = numbers.get(open);
    if (known !== undefined) return bracket(known);
    const number = rules.push({ open, body: nothing }) - 1;
    numbers.set(open, number);
    todo.push(() => {
      rules[number] = { open, body: body() };
    });
    return bracket(number);
  };

  const anyList = (): Pattern => ruleOf('any', '[', () => listBody(anyValue(), 0, Number.POSITIVE_INFINITY));
  const anyMap = (): Pattern => ruleOf('any', '{', () => mapBody(anyValue()));
  const anyValue = (): Pattern => either(anyString, anyNumber(true), boolean, literal('null'), anyList(), anyMap());

  /** Exactly this value, without spaces. */
  const exactly = (value: unknown): Pattern => {
    const text = JSON.stringify(value);
    if (Array.isArray(value)) return ruleOf(text, '[', () => sequence(...separated(value.map(exactly)), literal(']')));
    if (!isObject(value)) return literal(text);
    const members = Object.entries(value).map(([name, inner]) =>
      sequence(literal(`${JSON.stringify(name)}:`), exactly(inner)),
    );
    return ruleOf(text, '{', () => sequence(...separated(members), literal('}')));
  };
  const separated = (parts: Pattern[]): Pattern[] =>
    parts.flatMap((part, i) => (i === 0 ? [part] : [literal(','), part]));

  const stringOf = (r: Reader, path: string): Pattern => {
    const pattern = r.get('pattern');
    const least = r.count('minLength');
    const most = r.count('maxLength');
    const format = r.get('format');
    if (pattern !== undefined) {
      if (least !== undefined || most !== undefined)
        throw constraintFailure(path, 'has a pattern and a length; put the length into the pattern');
      if (typeof pattern !== 'string') throw constraintFailure(`${path}/pattern`, 'is no text');
      const parsed = parseRegex(pattern, `${path}/pattern`);
      const anything = repeat(stringCharacter, 0, Number.POSITIVE_INFINITY);
      return quoted(
        sequence(
          parsed.anchoredStart ? nothing : anything,
          escaped(parsed.pattern),
          parsed.anchoredEnd ? nothing : anything,
        ),
      );
    }
    const known = typeof format === 'string' && Object.hasOwn(formats, format) ? formats[format] : undefined;
    if (format !== undefined && known === undefined && !(typeof format === 'string' && numberFormats.has(format)))
      throw constraintFailure(`${path}/format`, `is none of ${Object.keys(formats).join(', ')}; leave it out`);
    if (known !== undefined && (pattern !== undefined || least !== undefined || most !== undefined))
      throw constraintFailure(path, 'has a format beside a pattern or a length; use one of them');
    if (known !== undefined) return quoted(parseRegex(known, path).pattern);
    if (least === undefined && most === undefined) return anyString;
    if ((most ?? Number.POSITIVE_INFINITY) < (least ?? 0))
      throw constraintFailure(path, 'has maxLength below minLength');
    return quoted(repeat(stringCharacter, least ?? 0, most ?? Number.POSITIVE_INFINITY));
  };

  const numberOf = (r: Reader, path: string, integer: boolean): Pattern => {
    const [minimum, maximum] = [r.number('minimum'), r.number('maximum')];
    const [above, below] = [r.number('exclusiveMinimum'), r.number('exclusiveMaximum')];
    if (integer) {
      if (minimum === undefined && maximum === undefined && above === undefined && below === undefined)
        return anyInteger;
      const low = Math.max(Math.ceil(minimum ?? -Infinity), Math.floor(above ?? -Infinity) + 1);
      const high = Math.min(Math.floor(maximum ?? Infinity), Math.ceil(below ?? Infinity) - 1);
      const between = integersBetween(low, high);
      if (between === undefined) throw constraintFailure(path, 'allows no integer');
      return between;
    }
    if (maximum !== undefined || above !== undefined || below !== undefined || (minimum ?? 0) !== 0)
      throw constraintFailure(path, 'bounds a number; only minimum 0 is supported, or bounds of an integer');
    return anyNumber(minimum === undefined);
  };

  const listPattern = (r: Reader, path: string, depth: number): Pattern => {
    const least = r.count('minItems') ?? 0;
    const most = r.count('maxItems') ?? Number.POSITIVE_INFINITY;
    if (most < least) throw constraintFailure(path, 'has maxItems below minItems');
    if (r.get('uniqueItems') === true) throw constraintFailure(`${path}/uniqueItems`, 'is not supported');
    const items = r.get('items');
    const first = r.get('prefixItems') ?? [];
    if (!Array.isArray(first)) throw constraintFailure(`${path}/prefixItems`, 'is no list');
    const item = () =>
      items === undefined || items === true ? anyValue() : compile(items, `${path}/items`, depth + 1, []);
    if (first.length === 0 && (items === false || most === 0)) {
      if (least > 0) throw constraintFailure(path, 'allows no list');
      return literal(']');
    }
    if (first.length === 0) return listBody(item(), least, most);
    const firsts = first.map((schema, i) => compile(schema, `${path}/prefixItems/${i}`, depth + 1, []));
    // Further items are written where the schema describes them.
    const others = items === undefined || items === false ? 0 : most - first.length;
    if (least > first.length + Math.max(0, others)) throw constraintFailure(path, 'has more minItems than items');
    let rest: Pattern = nothing;
    if (others > 0) rest = repeat(sequence(comma, item()), Math.max(0, least - first.length), others);
    for (let i = Math.min(first.length, most) - 1; i >= 0; i -= 1) {
      const one = sequence(i === 0 ? nothing : comma, firsts[i] ?? nothing, rest);
      rest = i >= least ? optional(one) : one;
    }
    return sequence(rest, literal(']'));
  };

  const objectPattern = (r: Reader, path: string, depth: number): Pattern => {
    const properties = r.get('properties');
    const required = r.get('required') ?? [];
    const additional = r.get('additionalProperties');
    if (properties !== undefined && !isObject(properties))
      throw constraintFailure(`${path}/properties`, 'is no object');
    if (!Array.isArray(required) || !required.every((name): name is string => typeof name === 'string'))
      throw constraintFailure(`${path}/required`, 'is no list of names');
    const names = Object.keys(properties ?? {});
    for (const name of required) {
      if (!names.includes(name)) throw constraintFailure(`${path}/required`, 'names a property that is not described');
    }
    const further = () =>
      additional === undefined || additional === true
        ? anyValue()
        : compile(additional, `${path}/additionalProperties`, depth + 1, []);
    if (names.length === 0) return additional === false ? literal('}') : mapBody(further());
    const members = names.map((name, i) => ({
      part: sequence(
        literal(JSON.stringify(name)),
        colon,
        compile(properties?.[name], `${path}/properties/${i}`, depth + 1, []),
      ),
      required: required.includes(name),
    }));
    if (additional !== undefined && additional !== false)
      members.push({ part: joined(sequence(otherStrings(names), colon, further()), comma), required: false });
    return sequence(membersOf(members, comma), literal('}'));
  };

  const typed = (type: unknown, schema: Schema, r: Reader, path: string, depth: number): Pattern => {
    switch (type) {
      case 'string':
        return stringOf(r, path);
      case 'integer':
        return numberOf(r, path, true);
      case 'number':
        return numberOf(r, path, false);
      case 'boolean':
        return boolean;
      case 'null':
        return literal('null');
      case 'array':
        return ruleOf(schema, '[', () => listPattern(r, path, depth));
      case 'object':
        return ruleOf(schema, '{', () => objectPattern(r, path, depth));
      default:
        throw constraintFailure(`${path}/type`, 'is no type of JSON');
    }
  };

  const hasType = (value: unknown, type: unknown): boolean => {
    if (type === 'null') return value === null;
    if (type === 'array') return Array.isArray(value);
    if (type === 'integer') return Number.isInteger(value);
    return type === 'object' ? isObject(value) : typeof value === type;
  };

  const compiled = new Map<Schema, Pattern>();
  const compile = (schema: unknown, path: string, depth: number, refs: readonly string[]): Pattern => {
    const known = isObject(schema) ? compiled.get(schema) : undefined;
    if (known !== undefined) return known;
    const pattern = compileNew(schema, path, depth, refs);
    if (isObject(schema)) compiled.set(schema, pattern);
    return pattern;
  };

  const compileNew = (schema: unknown, path: string, depth: number, refs: readonly string[]): Pattern => {
    if (depth > limits.depth) throw constraintFailure(path, `lies more than ${limits.depth} deep`);
    if (schema === true) return anyValue();
    if (!isObject(schema)) throw constraintFailure(path, 'is no schema that something is valid under');
    const r = reader(schema, path);
    const ref = r.get('$ref');
    if (ref !== undefined) {
      if (typeof ref !== 'string') throw constraintFailure(`${path}/$ref`, 'is no text');
      if (refs.includes(ref))
        throw constraintFailure(`${path}/$ref`, 'comes back to itself without a list or an object between');
      r.finish();
      return compile(resolve(ref, `${path}/$ref`), path, depth + 1, [...refs, ref]);
    }
    for (const keyword of ['anyOf', 'oneOf', 'allOf']) {
      if (schema[keyword] === undefined) continue;
      const options = r.get(keyword);
      if (!Array.isArray(options) || options.length === 0)
        throw constraintFailure(`${path}/${keyword}`, 'is no list of schemas');
      if (options.length > limits.choices)
        throw constraintFailure(`${path}/${keyword}`, `has ${options.length} schemas; at most ${limits.choices}`);
      if (keyword === 'allOf' && options.length > 1)
        throw constraintFailure(`${path}/allOf`, 'of several schemas is not supported; write them as one');
      r.finish();
      if (keyword === 'oneOf') {
        const both = mayBothMatch(options, (pointer) => resolve(pointer, path));
        if (both !== undefined)
          throw constraintFailure(
            `${path}/oneOf`,
            `may match by ${both[0]} and ${both[1]} at once; tell them apart by type or by a required property with a const, or use anyOf`,
          );
      }
      return either(...options.map((option, i) => compile(option, `${path}/${keyword}/${i}`, depth + 1, refs)));
    }
    const type = r.get('type');
    const types = Array.isArray(type) ? type : type === undefined ? undefined : [type];
    const values = schema['const'] === undefined ? r.get('enum') : [r.get('const')];
    if (values !== undefined) {
      if (!Array.isArray(values)) throw constraintFailure(`${path}/enum`, 'is no list');
      const valid = values.filter((value) => types === undefined || types.some((t) => hasType(value, t)));
      if (valid.length === 0 || valid.length > limits.choices)
        throw constraintFailure(path, `allows ${valid.length} values; give 1 to ${limits.choices} of its type`);
      r.finish();
      return either(...valid.map(exactly));
    }
    let guessed: unknown[] | undefined = types;
    if (guessed === undefined && (schema['properties'] !== undefined || schema['required'] !== undefined))
      guessed = ['object'];
    if (guessed === undefined && (schema['items'] !== undefined || schema['prefixItems'] !== undefined))
      guessed = ['array'];
    const pattern =
      guessed === undefined ? anyValue() : either(...guessed.map((t) => typed(t, schema, r, path, depth)));
    // Lists and objects read their keywords later.
    todo.push(() => r.finish());
    return pattern;
  };
  const pattern = compile(root, '#', 0, []);
  // Grows while it is worked off.
  for (const task of todo) task();
  return { pattern, rules };
}
