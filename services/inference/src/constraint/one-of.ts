import { isObject, type Schema } from './schema-object.ts';

/** How far schemas are looked into for what tells them apart. */
const maxDepth = 8;

type Resolve = (pointer: string) => unknown;

/** The schemas that a schema is one of, with references followed; undefined where that takes too many steps. */
function alternatives(schema: unknown, resolve: Resolve, depth: number): unknown[] | undefined {
  if (!isObject(schema)) return [schema];
  if (depth > maxDepth) return undefined;
  if (typeof schema['$ref'] === 'string') return alternatives(resolve(schema['$ref']), resolve, depth + 1);
  for (const keyword of ['anyOf', 'oneOf', 'allOf']) {
    const options = schema[keyword];
    if (!Array.isArray(options)) continue;
    const all = options.map((option) => alternatives(option, resolve, depth + 1));
    return all.every((list) => list !== undefined) ? all.flat() : undefined;
  }
  const { type } = schema;
  return Array.isArray(type) ? type.map((one: unknown) => ({ ...schema, type: one })) : [schema];
}

const valuesOf = (schema: Schema): unknown[] | undefined => {
  if (schema['const'] !== undefined) return [schema['const']];
  return Array.isArray(schema['enum']) ? schema['enum'] : undefined;
};

function typeOf(schema: Schema): unknown {
  if (schema['type'] !== undefined) return schema['type'] === 'integer' ? 'number' : schema['type'];
  if (schema['properties'] !== undefined || schema['required'] !== undefined) return 'object';
  return schema['items'] !== undefined || schema['prefixItems'] !== undefined ? 'array' : undefined;
}

const jsonType = (value: unknown): string => {
  if (value === null) return 'null';
  return Array.isArray(value) ? 'array' : typeof value;
};

const requiredOf = (schema: Schema): string[] =>
  Array.isArray(schema['required']) ? schema['required'].filter((name) => typeof name === 'string') : [];
const propertiesOf = (schema: Schema): Schema => (isObject(schema['properties']) ? schema['properties'] : {});

/** Whether no text that is written for `a` is valid under `b`. False also where that cannot be told. */
function excludes(a: unknown, b: unknown, resolve: Resolve, depth: number): boolean {
  if (depth > maxDepth) return false;
  const [these, those] = [alternatives(a, resolve, depth), alternatives(b, resolve, depth)];
  if (these === undefined || those === undefined) return false;
  return these.every((one) => those.every((other) => excludesOne(one, other, resolve, depth)));
}

function excludesOne(a: unknown, b: unknown, resolve: Resolve, depth: number): boolean {
  if (!isObject(a) || !isObject(b)) return false;
  const [these, those] = [valuesOf(a), valuesOf(b)];
  const [type, other] = [typeOf(a), typeOf(b)];
  if (these !== undefined && those !== undefined) {
    const known = new Set(those.map((value) => JSON.stringify(value)));
    return !these.some((value) => known.has(JSON.stringify(value)));
  }
  if (these !== undefined) return other !== undefined && !these.some((value) => jsonType(value) === other);
  if (those !== undefined) return type !== undefined && !those.some((value) => jsonType(value) === type);
  if (type === undefined || other === undefined) return false;
  if (type !== other) return true;
  if (type !== 'object') return false;
  const [own, foreign] = [propertiesOf(a), propertiesOf(b)];
  const writesOthers =
    Object.keys(own).length === 0
      ? a['additionalProperties'] !== false
      : (a['additionalProperties'] ?? false) !== false;
  if (!writesOthers && requiredOf(b).some((name) => !Object.hasOwn(own, name))) return true;
  return requiredOf(a).some((name) =>
    Object.hasOwn(foreign, name)
      ? excludes(own[name], foreign[name], resolve, depth + 1)
      : b['additionalProperties'] === false,
  );
}

/** Two of the schemas that one text may be valid under at once, by their numbers; undefined where every text is valid under exactly one. */
export function mayBothMatch(options: readonly unknown[], resolve: Resolve): [number, number] | undefined {
  for (const [i, a] of options.entries())
    for (const [j, b] of options.slice(0, i).entries())
      if (!excludes(a, b, resolve, 0) || !excludes(b, a, resolve, 0)) return [j, i];
  return undefined;
}
