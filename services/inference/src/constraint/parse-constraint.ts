import type { inference } from '@medmesh/proto';
import { parseJsonSchema } from './json-schema.ts';
import { parseRegex } from './parse-regex.ts';
import { constraintFailure, either, type Grammar, limits, literal } from './pattern.ts';

export type Rule = NonNullable<inference.Constraint['rule']>;

/** The texts that a request's constraint allows. A regular expression must match the whole answer. */
export function parseConstraint(rule: Rule): Grammar {
  if (rule.$case === 'jsonSchema') return parseJsonSchema(rule.value);
  if (rule.$case === 'regex') return { pattern: parseRegex(rule.value, 'regex').pattern, rules: [] };
  const { options } = rule.value;
  if (options.length === 0 || options.length > limits.choices || options.some((option) => option === ''))
    throw constraintFailure('choices', `has ${options.length} options; give 1 to ${limits.choices} that are not empty`);
  const size = options.reduce((sum, option) => sum + option.length, 0);
  if (size > limits.sourceLength)
    throw constraintFailure('choices', `has ${size} characters; at most ${limits.sourceLength}`);
  return { pattern: either(...options.map(literal)), rules: [] };
}
