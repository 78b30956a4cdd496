import { z } from 'zod';

/** What a process reads from one variable of its environment. */
export type ConfigVariable = {
  readonly name: string;
  readonly required: boolean;
  /** In words: `an integer from 0 to 65535`, `one of info, debug`. */
  readonly allowed: string;
  /** The default as it would be written in the environment; absent when there is none. */
  readonly default?: string;
  readonly secret: boolean;
  readonly description: string;
};

/** Whether a variable's value must never be shown. `X_FILE` is a path, so it may be. */
export const isSecretName = (name: string): boolean => /_(SECRET|KEY|TOKEN|PASSWORD)$/.test(name);

/** A value for people: secrets are hidden, and so is the user part of a URL; long values are cut. */
export function showValue(name: string, value: string | undefined): string {
  if (value === undefined) return 'nothing';
  if (isSecretName(name)) return 'a value (hidden: it is a secret)';
  const shown = withoutUserInfo(value);
  return JSON.stringify(shown.length > 200 ? `${shown.slice(0, 200)}…` : shown);
}

/** `nats://user:password@host` → `nats://***@host`. Also finds several URLs in one comma-separated value. */
const withoutUserInfo = (value: string): string => value.replace(/([a-z][a-z0-9+.-]*:\/\/)[^/?#\s,]*@/gi, '$1***@');

type JsonSchema = {
  type?: unknown;
  enum?: unknown[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  pattern?: string;
  format?: string;
  minLength?: number;
  default?: unknown;
};

function jsonSchemaOf(field: z.core.$ZodType): JsonSchema {
  return z.toJSONSchema(field, { io: 'output', unrepresentable: 'any' }) as JsonSchema;
}

/** What a field allows, in words, read from its schema. */
export function allowedValues(field: z.core.$ZodType | undefined): string {
  if (field === undefined) return 'a valid value';
  const schema = jsonSchemaOf(field);
  if (schema.enum !== undefined) return `one of ${schema.enum.map(String).join(', ')}`;
  if (schema.type === 'boolean') return 'true or false';
  if (schema.type === 'integer' || schema.type === 'number') {
    const noun = schema.type === 'integer' ? 'an integer' : 'a number';
    const least = schema.exclusiveMinimum === undefined ? schema.minimum : `more than ${schema.exclusiveMinimum}`;
    // zod bounds every integer by what a double can hold; that bound is no information.
    const low = least === Number.MIN_SAFE_INTEGER ? undefined : least;
    const high = schema.maximum === Number.MAX_SAFE_INTEGER ? undefined : schema.maximum;
    if (low === undefined && high === undefined) return noun;
    if (low !== undefined && high !== undefined) return `${noun} from ${low} to ${high}`;
    return low === undefined ? `${noun} of at most ${high}` : `${noun} of at least ${low}`;
  }
  if (schema.format === 'uri') return 'a URL';
  return schema.minLength === undefined || schema.minLength === 0 ? 'text' : 'text that is not empty';
}

/** The variables of a schema, in the schema's order. */
export function configVariables(schema: z.ZodObject): ConfigVariable[] {
  return Object.entries(schema.shape).map(([name, field]) => {
    const fallback = jsonSchemaOf(field).default;
    const required = !field.safeParse(undefined).success;
    return {
      name,
      required,
      allowed: allowedValues(field),
      ...(fallback === undefined
        ? {}
        : { default: typeof fallback === 'string' ? fallback : JSON.stringify(fallback) }),
      secret: isSecretName(name),
      description: z.globalRegistry.get(field)?.description ?? '',
    };
  });
}

/** The variables of a schema as a plain-text table, for `--print-config`. */
export function describeConfig(schema: z.ZodObject): string {
  const rows = configVariables(schema).map((v) => [
    v.secret ? `${v.name} (or ${v.name}_FILE)` : v.name,
    v.required
      ? 'required'
      : v.default === undefined
        ? 'optional'
        : `default ${v.default === '' ? '(empty)' : v.default}`,
    v.allowed,
    v.description,
  ]);
  const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
