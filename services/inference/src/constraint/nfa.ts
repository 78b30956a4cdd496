import { type BracketRule, constraintFailure, type Grammar, limits, type Pattern } from './pattern.ts';
import { utf8Ranges } from './utf8-ranges.ts';

/**
 * A nondeterministic automaton of a grammar: edges over byte ranges, free ones, and ones that a whole bracket of a rule lies on. Every rule has its own
 * start, behind its opening bracket, and its own end.
 */
export type Nfa = {
  free: number[][];
  edges: { first: number; last: number; to: number }[][];
  brackets: { rule: number; to: number }[][];
  start: number;
  end: number;
  rules: { open: number; start: number; end: number }[];
  /** Of each state, the brackets that must still be open at once before its rule can end; Infinity: it never can. */
  heights: Float64Array;
};

export function buildNfa({ pattern, rules }: Grammar, where: string): Nfa {
  const free: number[][] = [];
  const edges: Nfa['edges'] = [];
  const brackets: Nfa['brackets'] = [];
  const state = () => {
    if (free.length >= limits.nfaStates)
      throw constraintFailure(
        where,
        `needs more than ${limits.nfaStates} states; make it simpler or its counts smaller`,
      );
    free.push([]);
    edges.push([]);
    brackets.push([]);
    return free.length - 1;
  };
  /** Adds the pattern between two states that exist. */
  const add = (p: Pattern, from: number, to: number): void => {
    if (p.kind === 'characters') {
      for (const run of utf8Ranges(p.set)) {
        let at = from;
        for (const [i, [first, last]] of run.entries()) {
          const next = i === run.length - 1 ? to : state();
          edges[at]?.push({ first, last, to: next });
          at = next;
        }
      }
    } else if (p.kind === 'bracket') {
      brackets[from]?.push({ rule: p.rule, to });
    } else if (p.kind === 'either') {
      for (const option of p.options) {
        if (option.kind === 'bracket') {
          add(option, from, to);
          continue;
        }
        const inner = state();
        free[from]?.push(inner);
        add(option, inner, to);
      }
    } else if (p.kind === 'sequence') {
      let at = from;
      for (const [i, part] of p.parts.entries()) {
        const next = i === p.parts.length - 1 ? to : state();
        add(part, at, next);
        at = next;
      }
      if (p.parts.length === 0) free[from]?.push(to);
    } else if (p.kind === 'joined') {
      const before = state();
      const after = state();
      free[from]?.push(before);
      add(p.part, before, after);
      add(p.separator, after, before);
      free[after]?.push(to);
    } else if (p.kind === 'members') {
      /** Where nothing stands yet; gone behind a required member. */
      let empty: number | undefined = from;
      /** Where something stands. */
      let filled: number | undefined;
      for (const { part, required } of p.members) {
        const entry = state();
        const exit = state();
        if (empty !== undefined) free[empty]?.push(entry);
        if (filled !== undefined) add(p.separator, filled, entry);
        add(part, entry, exit);
        if (required) {
          empty = undefined;
          filled = exit;
        } else {
          const next = state();
          free[exit]?.push(next);
          if (filled !== undefined) free[filled]?.push(next);
          filled = next;
        }
      }
      if (empty !== undefined) free[empty]?.push(to);
      if (filled !== undefined) free[filled]?.push(to);
    } else {
      let at = from;
      for (let i = 0; i < p.least; i += 1) {
        const next = state();
        add(p.part, at, next);
        at = next;
      }
      if (p.most === Number.POSITIVE_INFINITY) {
        // A state of its own: `from` may be part of another loop.
        const loop = state();
        free[at]?.push(loop);
        add(p.part, loop, loop);
        at = loop;
      } else {
        for (let i = p.least; i < p.most; i += 1) {
          const next = state();
          free[at]?.push(to);
          add(p.part, at, next);
          at = next;
        }
      }
      free[at]?.push(to);
    }
  };
  const addWhole = (p: Pattern) => {
    const start = state();
    const end = state();
    add(p, start, end);
    return { start, end };
  };
  const { start, end } = addWhole(pattern);
  const ruleStates = rules.map(({ open, body }: BracketRule) => ({ open: open.charCodeAt(0), ...addWhole(body) }));
  const nfa = { free, edges, brackets, start, end, rules: ruleStates, heights: new Float64Array() };
  return { ...nfa, heights: heightsOf(nfa) };
}

/** By the lowest way to the end, where a bracket on the way counts for one more than what is inside it. */
function heightsOf(nfa: Nfa): Float64Array {
  const heights = new Float64Array(nfa.free.length).fill(Number.POSITIVE_INFINITY);
  const heightAt = (s: number) => heights[s] ?? Number.POSITIVE_INFINITY;
  /** The steps that lead to a state: from where, and how high it is to go on from there by this step. */
  const before: { from: number; height: () => number }[][] = nfa.free.map(() => []);
  for (const [from, list] of nfa.free.entries())
    for (const to of list) before[to]?.push({ from, height: () => heightAt(to) });
  for (const [from, list] of nfa.edges.entries())
    for (const { to } of list) before[to]?.push({ from, height: () => heightAt(to) });
  for (const [from, list] of nfa.brackets.entries()) {
    for (const { rule, to } of list) {
      const start = nfa.rules[rule]?.start ?? 0;
      const step = { from, height: () => Math.max(1 + heightAt(start), heightAt(to)) };
      before[to]?.push(step);
      before[start]?.push(step);
    }
  }
  const queue = [nfa.end, ...nfa.rules.map(({ end }) => end)];
  for (const end of queue) heights[end] = 0;
  // Grows while it is worked off: heights only fall.
  for (const state of queue) {
    for (const { from, height } of before[state] ?? []) {
      const least = height();
      if (least >= heightAt(from)) continue;
      heights[from] = least;
      queue.push(from);
    }
  }
  return heights;
}
