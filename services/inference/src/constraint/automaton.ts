import type { ByteAutomaton } from '@medmesh/engine';
import { constraintFailure, limits, type Pattern } from './pattern.ts';
import { utf8Ranges } from './utf8-ranges.ts';

/** `next` of the automaton where no text goes on. */
export const deadState = 0xffff_ffff;

/** A nondeterministic automaton with one start and one end: edges over byte ranges, and free ones. */
type Nfa = { free: number[][]; edges: { first: number; last: number; to: number }[][]; start: number; end: number };

function buildNfa(pattern: Pattern, where: string): Nfa {
  const free: number[][] = [];
  const edges: Nfa['edges'] = [];
  const state = () => {
    if (free.length >= limits.nfaStates)
      throw constraintFailure(
        where,
        `needs more than ${limits.nfaStates} states; make it simpler or its counts smaller`,
      );
    free.push([]);
    edges.push([]);
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
    } else if (p.kind === 'either') {
      for (const option of p.options) {
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
  const start = state();
  const end = state();
  add(pattern, start, end);
  return { free, edges, start, end };
}

/** Classes of bytes that no edge tells apart. */
function byteClasses(nfa: Nfa): { classOf: Uint8Array; classes: number; example: number[] } {
  const cut = new Uint8Array(257);
  for (const list of nfa.edges) {
    for (const { first, last } of list) {
      cut[first] = 1;
      cut[last + 1] = 1;
    }
  }
  const classOf = new Uint8Array(256);
  const example = [0];
  for (let byte = 1; byte < 256; byte += 1) {
    if (cut[byte] === 1) example.push(byte);
    classOf[byte] = example.length - 1;
  }
  return { classOf, classes: example.length, example };
}

/**
 * The smallest-effort deterministic automaton over UTF-8 bytes that accepts exactly the pattern's texts. From each of its states some text can still
 * be finished. Failure `invalid_argument` when it would be too large.
 */
export function compilePattern(pattern: Pattern, where: string): ByteAutomaton {
  const nfa = buildNfa(pattern, where);
  const { classOf, classes, example } = byteClasses(nfa);
  let work = 0;
  const spend = (steps: number) => {
    work += steps;
    if (work > limits.work) throw constraintFailure(where, 'takes too long to prepare; make it simpler');
  };

  const mark = new Uint32Array(nfa.free.length);
  let generation = 0;
  /** All states reachable for free, sorted. */
  const closure = (states: Iterable<number>): number[] => {
    generation += 1;
    const found: number[] = [];
    const visit = (s: number) => {
      if (mark[s] === generation) return;
      mark[s] = generation;
      found.push(s);
    };
    for (const s of states) visit(s);
    for (let i = 0; i < found.length; i += 1) for (const to of nfa.free[found[i] ?? 0] ?? []) visit(to);
    spend(found.length);
    // States without edges of their own tell sets apart needlessly, but for the end.
    return found.filter((s) => s === nfa.end || (nfa.edges[s]?.length ?? 0) > 0).sort((a, b) => a - b);
  };

  const sets: number[][] = [];
  const index = new Map<string, number>();
  const stateOf = (set: number[]): number => {
    const key = set.join(',');
    const known = index.get(key);
    if (known !== undefined) return known;
    if (sets.length >= limits.dfaStates)
      throw constraintFailure(
        where,
        `needs more than ${limits.dfaStates} states; make it simpler or its counts smaller`,
      );
    index.set(key, sets.length);
    sets.push(set);
    return sets.length - 1;
  };
  const table: number[] = [];
  stateOf(closure([nfa.start]));
  for (let s = 0; s < sets.length; s += 1) {
    const outgoing = (sets[s] ?? []).flatMap((n) => nfa.edges[n] ?? []);
    spend(outgoing.length * classes);
    for (let c = 0; c < classes; c += 1) {
      const byte = example[c] ?? 0;
      const targets = outgoing.filter(({ first, last }) => byte >= first && byte <= last).map(({ to }) => to);
      table.push(targets.length === 0 ? deadState : stateOf(closure(targets)));
    }
  }
  const accepting = Uint8Array.from(sets, (set) => (set.includes(nfa.end) ? 1 : 0));
  return withoutTraps({ classOf, classes, next: Uint32Array.from(table), accepting }, where);
}

/** Removes transitions into states from which nothing can be finished. */
function withoutTraps(automaton: ByteAutomaton, where: string): ByteAutomaton {
  const { classes, next, accepting } = automaton;
  const sources: number[][] = Array.from(accepting, () => []);
  for (const [i, to] of next.entries()) if (to !== deadState) sources[to]?.push(Math.floor(i / classes));
  const useful = new Uint8Array(accepting);
  const queue = [...accepting.keys()].filter((s) => accepting[s] === 1);
  for (let s = queue.pop(); s !== undefined; s = queue.pop()) {
    for (const from of sources[s] ?? []) {
      if (useful[from] === 1) continue;
      useful[from] = 1;
      queue.push(from);
    }
  }
  if (useful[0] !== 1) throw constraintFailure(where, 'describes no text at all');
  return { ...automaton, next: next.map((to) => (to === deadState || useful[to] !== 1 ? deadState : to)) };
}

/** Whether the automaton accepts a text. */
export function accepts(automaton: ByteAutomaton, text: string): boolean {
  let state = 0;
  for (const byte of new TextEncoder().encode(text)) {
    state = automaton.next[state * automaton.classes + (automaton.classOf[byte] ?? 0)] ?? deadState;
    if (state === deadState) return false;
  }
  return automaton.accepting[state] === 1;
}
