import { call } from './call.ts';
import { EngineError, toEngineError } from './errors.ts';
import { type ConstraintHandle, native } from './native.ts';
import type { Constraint, Vocabulary } from './types.ts';

/** Brackets that an automaton may have open at once; as in infer/constraint.h. */
export const maxAutomatonDepth = 128;

const handles = new WeakMap<Constraint, ConstraintHandle>();

/**
 * Prepares a vocabulary for constraints. `tokens` gives the bytes of ids 0 to its length − 1; empty ones are never part of a constrained output.
 * About 50 ms for 150,000 tokens, on a thread of its own.
 */
export async function createVocabulary(tokens: readonly Uint8Array[]): Promise<Vocabulary> {
  const offsets = new Uint32Array(tokens.length + 1);
  for (const [i, bytes] of tokens.entries()) offsets[i + 1] = (offsets[i] ?? 0) + bytes.length;
  const bytes = new Uint8Array(offsets[tokens.length] ?? 0);
  for (const [i, token] of tokens.entries()) bytes.set(token, offsets[i] ?? 0);
  const vocabulary = await call(undefined, () => native.createVocabulary(bytes, offsets));
  return {
    createConstraint(automaton) {
      try {
        const handle = native.createConstraint(vocabulary, { ...automaton, stack: automaton.stack ?? null });
        const constraint: Constraint = { close: () => call(undefined, () => native.close(handle)) };
        handles.set(constraint, handle);
        return constraint;
      } catch (error) {
        throw toEngineError(error);
      }
    },
    close: () => call(undefined, () => native.close(vocabulary)),
  };
}

/** The handle behind a constraint; null for none. */
export function constraintHandle(constraint: Constraint | undefined): ConstraintHandle | null {
  if (constraint === undefined) return null;
  const handle = handles.get(constraint);
  if (!handle) throw new EngineError('invalid', 'the constraint does not come from createConstraint');
  return handle;
}
