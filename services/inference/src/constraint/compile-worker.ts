import { parentPort } from 'node:worker_threads';
import { toFailure } from '@medmesh/errors';
import { compileGrammar } from './automaton.ts';
import { parseConstraint, type Rule } from './parse-constraint.ts';
import { literal, repeat, sequence } from './pattern.ts';

/** Line feeds that may stand between a thought and the answer; they belong to the markup and are not part of the answer. */
const maxLineFeeds = 4;

export type CompileTask = { id: number; rule: Rule; afterReasoning: boolean };

parentPort?.on('message', ({ id, rule, afterReasoning }: CompileTask) => {
  try {
    const { pattern, rules } = parseConstraint(rule);
    const whole = afterReasoning ? sequence(repeat(literal('\n'), 0, maxLineFeeds), pattern) : pattern;
    parentPort?.postMessage({ id, automaton: compileGrammar({ pattern: whole, rules }, 'the constraint') });
  } catch (error) {
    const failure = toFailure(error);
    parentPort?.postMessage({ id, refused: failure.code === 'invalid_argument' ? failure.message : undefined });
  }
});
