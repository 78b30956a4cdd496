import {
  anyInteger,
  anyNumber,
  anyString,
  anyValue,
  arrayOf,
  boolean,
  colon,
  comma,
  escaped,
  freeDepth,
  integersBetween,
  mapOf,
  quoted,
  stringCharacter,
} from './json-values.ts';
import { parseRegex } from './parse-regex.ts';
import {
  constraintFailure,
  either,
  limits,
  literal,
  nothing,
  optional,
  type Pattern,
  repeat,
  sequence,
} from './pattern.ts';

type Schema = { readonly [keyword: string]: unknown };

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

const formats: Readonly<Record<string, string>> = {
  date: '\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\\d|3[01])',
  time: '([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)',
  'date-time':
    '\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\\d|3[01])T([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)',
  uuid: '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}',
};

const isObject = (value: unknown): value is Schema =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * The JSON texts that a schema describes, properties in the schema's order. Every text of the pattern is valid under the schema; not every valid
 * value is among them: properties that the schema does not name are not written, and values without a given shape are nested 4 deep at most.
 * A keyword that cannot be kept to is refused, with its place.
 */
export function parseJsonSchema(source: string): Pattern {
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
    if (known !== undefined && least === undefined && most === undefined)
      return quoted(parseRegex(known, path).pattern);
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

  const arrayPattern = (r: Reader, path: string, depth: number, refs: readonly string[]): Pattern => {
    const least = r.count('minItems') ?? 0;
    const most = r.count('maxItems') ?? Number.POSITIVE_INFINITY;
    if (most < least) throw constraintFailure(path, 'has maxItems below minItems');
    if (r.get('uniqueItems') === true) throw constraintFailure(`${path}/uniqueItems`, 'is not supported');
    const items = r.get('items');
    const item = items === undefined ? anyValue(freeDepth - 1) : compile(items, `${path}/items`, depth + 1, refs);
    return arrayOf(item, least, most);
  };

  const objectPattern = (r: Reader, path: string, depth: number, refs: readonly string[]): Pattern => {
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
    if (names.length === 0) {
      if (additional === false) return literal('{}');
      if (additional === undefined || additional === true) return mapOf(anyValue(freeDepth - 1));
      return mapOf(compile(additional, `${path}/additionalProperties`, depth + 1, refs));
    }
    const members = names.map((name, i) => ({
      pattern: sequence(
        literal(JSON.stringify(name)),
        colon,
        compile(properties?.[name], `${path}/properties/${i}`, depth + 1, refs),
      ),
      required: required.includes(name),
    }));
    // `after`: what may follow when something stands before; `rest`: when nothing does yet.
    let after: Pattern = nothing;
    let rest: Pattern = nothing;
    for (const member of members.toReversed()) {
      const taken = sequence(member.pattern, after);
      rest = member.required ? taken : either(taken, rest);
      const following = sequence(comma, member.pattern);
      after = sequence(member.required ? following : optional(following), after);
    }
    return sequence(literal('{'), rest, literal('}'));
  };

  const typed = (type: unknown, r: Reader, path: string, depth: number, refs: readonly string[]): Pattern => {
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
        return arrayPattern(r, path, depth, refs);
      case 'object':
        return objectPattern(r, path, depth, refs);
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

  const compile = (schema: unknown, path: string, depth: number, refs: readonly string[]): Pattern => {
    if (depth > limits.depth) throw constraintFailure(path, `lies more than ${limits.depth} deep`);
    if (schema === true) return anyValue(freeDepth);
    if (!isObject(schema)) throw constraintFailure(path, 'is no schema that something is valid under');
    const r = reader(schema, path);
    const ref = r.get('$ref');
    if (ref !== undefined) {
      if (typeof ref !== 'string') throw constraintFailure(`${path}/$ref`, 'is no text');
      if (refs.includes(ref))
        throw constraintFailure(
          `${path}/$ref`,
          'comes back to itself; an automaton has no memory for such depth, so unroll it',
        );
      r.finish();
      return compile(resolve(ref, `${path}/$ref`), path, depth + 1, [...refs, ref]);
    }
    const some = r.get('anyOf') ?? r.get('allOf');
    if (some !== undefined) {
      if (!Array.isArray(some) || some.length === 0)
        throw constraintFailure(path, 'has an anyOf or allOf without schemas');
      if (schema['allOf'] !== undefined && (some.length > 1 || schema['anyOf'] !== undefined))
        throw constraintFailure(`${path}/allOf`, 'of several schemas is not supported; write them as one');
      r.finish();
      return either(
        ...some.map((option, i) =>
          compile(option, `${path}/${schema['allOf'] === undefined ? 'anyOf' : 'allOf'}/${i}`, depth + 1, refs),
        ),
      );
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
      return either(...valid.map((value) => literal(JSON.stringify(value))));
    }
    let guessed: unknown[] | undefined = types;
    if (guessed === undefined && (schema['properties'] !== undefined || schema['required'] !== undefined))
      guessed = ['object'];
    if (guessed === undefined && schema['items'] !== undefined) guessed = ['array'];
    const pattern =
      guessed === undefined ? anyValue(freeDepth) : either(...guessed.map((t) => typed(t, r, path, depth, refs)));
    r.finish();
    return pattern;
  };
  return compile(root, '#', 0, []);
}
