import { type ByteAutomaton, maxAutomatonDepth } from '@medmesh/engine';
import { buildNfa, type Nfa } from './nfa.ts';
import { constraintFailure, type Grammar, limits } from './pattern.ts';

/** `next` of the automaton where no text goes on, and an outcome that is none. */
export const deadState = 0xffff_ffff;
/** Added in `next` to the state that an opening bracket leads to. */
const opens = 0x8000_0000;

/** Classes of bytes that no edge tells apart. */
function byteClasses(nfa: Nfa): { classOf: Uint8Array; classes: number; example: number[] } {
  const cut = new Uint8Array(257);
  for (const list of nfa.edges) {
    for (const { first, last } of list) {
      cut[first] = 1;
      cut[last + 1] = 1;
    }
  }
  for (const { open } of nfa.rules) {
    cut[open] = 1;
    cut[open + 1] = 1;
  }
  const classOf = new Uint8Array(256);
  const example = [0];
  for (let byte = 1; byte < 256; byte += 1) {
    if (cut[byte] === 1) example.push(byte);
    classOf[byte] = example.length - 1;
  }
  return { classOf, classes: example.length, example };
}

/** Sets of states with numbers, in the order in which they were met. */
function createNumbering<T extends readonly number[]>(atMost: number, tooMany: () => Error) {
  const sets: T[] = [];
  const index = new Map<string, number>();
  return {
    sets,
    numberOf(set: T): number {
      const key = set.join(',');
      const known = index.get(key);
      if (known !== undefined) return known;
      if (sets.length >= atMost) throw tooMany();
      index.set(key, sets.length);
      sets.push(set);
      return sets.length - 1;
    },
  };
}

/**
 * The deterministic automaton over UTF-8 bytes that accepts exactly the grammar's texts with at most `maxAutomatonDepth` brackets open at once. From
 * each of its states some text can still be finished. Where several rules may stand in one place, their brackets are read side by side, and how the
 * bracket ended says which of them it can have been. Failure `invalid_argument` when it would be too large, or there are no such texts.
 */
export function compileGrammar(grammar: Grammar, where: string): ByteAutomaton {
  const nfa = buildNfa(grammar, where);
  const leastDepth = nfa.heights[nfa.start] ?? 0;
  if (leastDepth === Number.POSITIVE_INFINITY) throw constraintFailure(where, 'describes no text at all');
  if (leastDepth > maxAutomatonDepth)
    throw constraintFailure(where, `describes only texts with more than ${maxAutomatonDepth} open brackets`);
  const { classOf, classes, example } = byteClasses(nfa);
  let work = 0;
  const spend = (steps: number) => {
    work += steps;
    if (work > limits.work) throw constraintFailure(where, 'takes too long to prepare; make it simpler');
  };
  const isEnd = new Uint8Array(nfa.free.length);
  for (const { end } of [nfa, ...nfa.rules]) isEnd[end] = 1;

  const mark = new Uint32Array(nfa.free.length);
  let generation = 0;
  /** All states reachable for free from which an end can be reached, sorted. */
  const closure = (states: Iterable<number>): number[] => {
    generation += 1;
    const found: number[] = [];
    const visit = (s: number) => {
      if (mark[s] === generation || nfa.heights[s] === Number.POSITIVE_INFINITY) return;
      mark[s] = generation;
      found.push(s);
    };
    for (const s of states) visit(s);
    for (let i = 0; i < found.length; i += 1) for (const to of nfa.free[found[i] ?? 0] ?? []) visit(to);
    spend(found.length);
    // States without edges of their own tell sets apart needlessly, but for the ends.
    const tells = (s: number) =>
      isEnd[s] === 1 || (nfa.edges[s]?.length ?? 0) > 0 || (nfa.brackets[s]?.length ?? 0) > 0;
    return found.filter(tells).sort((a, b) => a - b);
  };

  const states = createNumbering(limits.dfaStates, () =>
    constraintFailure(where, `needs more than ${limits.dfaStates} states; make it simpler or its counts smaller`),
  );
  /** Sets of rules of which a bracket can have been one. */
  const outcomes = createNumbering(limits.dfaStates, () => constraintFailure(where, 'has too many alternatives'));
  const table: number[] = [];
  const outcomeOf: number[] = [];
  /** Where a bracket may open: the state, and for each rule that may stand there, where a text goes on behind it. */
  const openings: { frame: number; behind: Map<number, number[]> }[] = [];
  const ruleByEnd = new Map(nfa.rules.map(({ end }, rule) => [end, rule]));

  /** The row of the table of state `s`. */
  const addRow = (s: number): void => {
    const set = states.sets[s] ?? [];
    const outgoing = set.flatMap((n) => nfa.edges[n] ?? []);
    const brackets = set.flatMap((n) => nfa.brackets[n] ?? []).filter(({ rule, to }) => isUseful(rule, to));
    spend((outgoing.length + brackets.length) * classes);
    for (let c = 0; c < classes; c += 1) {
      const byte = example[c] ?? 0;
      const targets = outgoing.filter(({ first, last }) => byte >= first && byte <= last).map(({ to }) => to);
      const opened = brackets.filter(({ rule }) => nfa.rules[rule]?.open === byte);
      if (opened.length > 0) {
        if (targets.length > 0) throw new Error('a bracket is both a rule and plain text');
        const behind = new Map<number, number[]>();
        for (const { rule, to } of opened) behind.set(rule, [...(behind.get(rule) ?? []), to]);
        openings.push({ frame: s, behind });
        table.push(opens + states.numberOf(closure([...behind.keys()].map((rule) => nfa.rules[rule]?.start ?? 0))));
        continue;
      }
      const next = targets.length === 0 ? [] : closure(targets);
      table.push(next.length === 0 ? deadState : states.numberOf(next));
    }
    const ended = set.flatMap((n) => ruleByEnd.get(n) ?? []).sort((a, b) => a - b);
    outcomeOf.push(ended.length === 0 ? deadState : outcomes.numberOf(ended));
  };
  const isUseful = (rule: number, to: number) =>
    Math.max(nfa.heights[nfa.rules[rule]?.start ?? 0] ?? 0, nfa.heights[to] ?? 0) < Number.POSITIVE_INFINITY;

  const returns: [frame: number, outcome: number, next: number][] = [];
  let [doneOpenings, doneOutcomes] = [0, 0];
  /** Where a text goes on after a bracket, for every opening and every way in which its bracket may have ended. */
  const addReturns = (): void => {
    const [openingCount, outcomeCount] = [openings.length, outcomes.sets.length];
    for (const [i, { frame, behind }] of openings.slice(0, openingCount).entries()) {
      for (let outcome = i < doneOpenings ? doneOutcomes : 0; outcome < outcomeCount; outcome += 1) {
        spend(1);
        const targets = (outcomes.sets[outcome] ?? []).map((rule) => behind.get(rule));
        if (!targets.every((list) => list !== undefined)) continue;
        const next = closure(targets.flat());
        if (next.length > 0) returns.push([frame, outcome, states.numberOf(next)]);
      }
    }
    [doneOpenings, doneOutcomes] = [openingCount, outcomeCount];
  };

  states.numberOf(closure([nfa.start]));
  for (let done = 0; done < states.sets.length; ) {
    for (; done < states.sets.length; done += 1) addRow(done);
    addReturns();
  }
  const least = (set: readonly number[]) => Math.min(...set.map((n) => nfa.heights[n] ?? 0));
  return {
    classOf,
    classes,
    next: Uint32Array.from(table),
    accepting: Uint8Array.from(states.sets, (set) => (set.includes(nfa.end) ? 1 : 0)),
    ...(nfa.rules.length === 0
      ? {}
      : {
          stack: {
            outcomes: Uint32Array.from(outcomeOf),
            heights: Uint32Array.from(states.sets, (set) => Math.min(maxAutomatonDepth, least(set))),
            returns: Uint32Array.from(returns.toSorted((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]).flat()),
          },
        }),
  };
}

/** Whether the automaton accepts a text, read as the engine reads it (infer/constraint.cpp). */
export function accepts(automaton: ByteAutomaton, text: string): boolean {
  const { classOf, classes, next, accepting, stack } = automaton;
  const frames: number[] = [];
  let state = 0;
  for (const byte of new TextEncoder().encode(text)) {
    const to = next[state * classes + (classOf[byte] ?? 0)] ?? deadState;
    if (to === deadState) return false;
    if (to >= opens) frames.push(state);
    state = to >= opens ? to - opens : to;
    if (stack === undefined) continue;
    if (frames.length + (stack.heights[state] ?? 0) > maxAutomatonDepth) return false;
    const outcome = stack.outcomes[state] ?? deadState;
    if (outcome === deadState) continue;
    const frame = frames.pop();
    const at = stack.returns.findIndex(
      (_, i) => i % 3 === 0 && stack.returns[i] === frame && stack.returns[i + 1] === outcome,
    );
    if (at < 0) return false;
    state = stack.returns[at + 2] ?? deadState;
  }
  return frames.length === 0 && accepting[state] === 1;
}
