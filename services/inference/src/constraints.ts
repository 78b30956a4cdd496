import { createHash } from 'node:crypto';
import { type Constraint, createVocabulary, type Vocabulary } from '@medmesh/engine';
import type { TextTokenizer } from '@medmesh/text';
import type { Base } from './bases.ts';
import type { ConstraintCompiler } from './constraint/compiler.ts';
import type { Rule } from './constraint/parse-constraint.ts';

export type Constraints = {
  /** The constraint in this base's tokens. `afterReasoning` lets line feeds stand before it. */
  acquire(base: Base, rule: Rule, afterReasoning: boolean, signal: AbortSignal): Promise<Constraint>;
};

/** Constraints kept for each tokenizer. What a request still uses lives on in the engine after it is forgotten here. */
const maxKept = 32;

/** Constraints by the digest of their rule and the tokenizer, so that a schema that comes with every request is compiled once. */
export function createConstraints(compiler: ConstraintCompiler): Constraints {
  type Tokens = { vocabulary: Promise<Vocabulary>; kept: Map<string, Constraint> };
  const byTokenizer = new WeakMap<TextTokenizer, Tokens>();

  const tokensOf = ({ tokenizer, model }: Base): Tokens => {
    const known = byTokenizer.get(tokenizer);
    if (known !== undefined) return known;
    const none = new Uint8Array();
    const bytes = Array.from({ length: model.info.vocabSize }, (_, id) => {
      if (id >= tokenizer.vocabularySize) return none;
      // Special tokens are markup: no constraint is spelled with them.
      return tokenizer.addedTokenId(tokenizer.piece(id)) === id ? none : tokenizer.tokenBytes(id);
    });
    const tokens: Tokens = { vocabulary: createVocabulary(bytes), kept: new Map() };
    byTokenizer.set(tokenizer, tokens);
    return tokens;
  };

  return {
    async acquire(base, rule, afterReasoning, signal) {
      const { vocabulary, kept } = tokensOf(base);
      const key = createHash('sha256')
        .update(JSON.stringify([rule, afterReasoning]))
        .digest('hex');
      let constraint = kept.get(key);
      if (constraint === undefined) {
        const automaton = await compiler.compile(rule, afterReasoning, signal);
        constraint = (await vocabulary).createConstraint(automaton);
      }
      // Used last, forgotten last.
      kept.delete(key);
      kept.set(key, constraint);
      const oldest = kept.keys().next().value;
      if (kept.size > maxKept && oldest !== undefined) kept.delete(oldest);
      return constraint;
    },
  };
}
