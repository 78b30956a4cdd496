import { readFileSync } from 'node:fs';
import { describeConfig } from '@medmesh/config';
import type { z } from 'zod';

/** What the arguments ask for instead of a service: text, and how the process ends. Undefined: run the service. */
export function answerArguments(
  name: string,
  schema: z.ZodObject,
  argv: readonly string[],
): { text: string; exitCode: number } | undefined {
  if (argv.length === 0) return undefined;
  const [argument] = argv;
  if (argv.length === 1 && argument === '--help') return { text: help(name, schema), exitCode: 0 };
  if (argv.length === 1 && argument === '--print-config') return { text: `${describeConfig(schema)}\n`, exitCode: 0 };
  if (argv.length === 1 && argument === '--version') return { text: `${version()}\n`, exitCode: 0 };
  return { text: `medmesh ${name}: unknown arguments ${argv.join(' ')}; see --help\n`, exitCode: 2 };
}

const help = (name: string, schema: z.ZodObject): string =>
  [
    `The ${name} service of medmesh. It is configured by environment variables and stops on SIGTERM.`,
    '',
    '  --help          this text',
    '  --print-config  the variables, as a table',
    '  --version       the version',
    '',
    describeConfig(schema),
    '',
  ].join('\n');

function version(): string {
  const { version: text } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  return text;
}
