import { readFileSync, statSync } from 'node:fs';
import type { z } from 'zod';
import { ConfigError, type ConfigFault } from './config-error.ts';
import { allowedValues, showValue } from './variables.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

/** A secret is a line or a certificate, not a data file. */
const maxSecretFileBytes = 64 * 1024;

/**
 * Reads the variables named by `schema` from `env`, once, and returns them frozen. An empty variable counts as absent.
 * `X_FILE` names a file that holds the value of `X` (its last newline is dropped), which is how secrets are mounted.
 * @throws ConfigError listing every fault at once.
 */
export function loadConfig<Shape extends z.core.$ZodShape>(
  schema: z.ZodObject<Shape>,
  env: Environment,
): Readonly<z.output<z.ZodObject<Shape>>> {
  const faults: ConfigFault[] = [];
  const input: Record<string, string> = {};
  for (const name of Object.keys(schema.shape)) {
    const value = readVariable(name, schema.shape, env, faults);
    if (value !== undefined) input[name] = value;
  }

  const parsed = schema.safeParse(input);
  if (!parsed.success) {
    for (const issue of parsed.error.issues) {
      const name = String(issue.path[0] ?? '(the whole configuration)');
      if (faults.some((fault) => fault.name === name)) continue;
      faults.push({
        name,
        seen: showValue(name, input[name]),
        expected: `${allowedValues(schema.shape[name])} (${issue.message})`,
      });
    }
  }
  if (!parsed.success || faults.length > 0) throw new ConfigError(faults);
  return Object.freeze(parsed.data);
}

function readVariable(name: string, shape: object, env: Environment, faults: ConfigFault[]): string | undefined {
  const value = env[name] || undefined;
  const fileVariable = `${name}_FILE`;
  // A schema may have a variable of its own called X_FILE; then that is what the name means.
  const path = Object.hasOwn(shape, fileVariable) ? undefined : env[fileVariable] || undefined;
  if (path === undefined) return value;
  if (value !== undefined) {
    faults.push({ name, seen: `both ${name} and ${fileVariable}`, expected: 'only one of the two' });
    return undefined;
  }
  try {
    const { size } = statSync(path);
    if (size > maxSecretFileBytes) {
      faults.push({
        name: fileVariable,
        seen: `${path}, a file of ${size} bytes`,
        expected: `a file of at most ${maxSecretFileBytes} bytes`,
      });
      return undefined;
    }
    return readFileSync(path, 'utf8').replace(/\r?\n$/, '') || undefined;
  } catch (e) {
    const code = e instanceof Error && 'code' in e ? String(e.code) : 'unreadable';
    faults.push({ name: fileVariable, seen: `${path} (${code})`, expected: 'the path of a readable file' });
    return undefined;
  }
}
