import { Failure } from '@medmesh/errors';

/** A set of characters: sorted, disjoint ranges of code points, ends included. */
export type Characters = readonly (readonly [first: number, last: number])[];

/** A language of texts, as regular expressions build it. */
export type Pattern =
  | { readonly kind: 'characters'; readonly set: Characters }
  | { readonly kind: 'sequence'; readonly parts: readonly Pattern[] }
  | { readonly kind: 'either'; readonly options: readonly Pattern[] }
  /** `part`, at least `least` times and at most `most` (may be infinite). */
  | { readonly kind: 'repeat'; readonly part: Pattern; readonly least: number; readonly most: number }
  /** `part` once or more often, with `separator` between; one copy of each, where a sequence with a repetition would need two. */
  | { readonly kind: 'joined'; readonly part: Pattern; readonly separator: Pattern }
  /** The required ones of `members` and any of the others, in their order, with `separator` between; one copy of each. */
  | { readonly kind: 'members'; readonly members: readonly Member[]; readonly separator: Pattern }
  /** A bracketed text of the grammar's rule of that number. */
  | { readonly kind: 'bracket'; readonly rule: number };

export type Member = { readonly part: Pattern; readonly required: boolean };

/** Texts in brackets that may hold each other, to any depth. */
export type BracketRule = {
  readonly open: '{' | '[';
  /** What follows the opening bracket, with the closing one. Brackets inside it are rules, but for those in strings. */
  readonly body: Pattern;
};

/** A language of texts that may nest. */
export type Grammar = { readonly pattern: Pattern; readonly rules: readonly BracketRule[] };

export const lastCodePoint = 0x10_ffff;

/** How large a constraint may be. All are counts, so that what is refused does not depend on the machine. */
export const limits = {
  /** Characters of a regular expression, schema, or all choices together. */
  sourceLength: 65_536,
  /** How deep groups or schemas may lie in each other. */
  depth: 64,
  /** States before and after they are made deterministic. */
  nfaStates: 50_000,
  dfaStates: 20_000,
  /** Steps of making them so. */
  work: 30_000_000,
  choices: 1_000,
} as const;

/** A constraint that cannot be used: what is wrong with it, where. */
export const constraintFailure = (where: string, what: string): Failure =>
  new Failure('invalid_argument', `constraint: ${where} ${what}`, {
    reason: 'CONSTRAINT_INVALID',
    fields: [{ field: 'constraint', description: `${where} ${what}` }],
  });

export const nothing: Pattern = { kind: 'sequence', parts: [] };
export const characters = (set: Characters): Pattern => ({ kind: 'characters', set: normalize(set) });
export const sequence = (...parts: Pattern[]): Pattern => ({ kind: 'sequence', parts });
export const either = (...options: Pattern[]): Pattern =>
  options.length === 1 && options[0] !== undefined ? options[0] : { kind: 'either', options };
export const repeat = (part: Pattern, least: number, most: number): Pattern => ({ kind: 'repeat', part, least, most });
export const joined = (part: Pattern, separator: Pattern): Pattern => ({ kind: 'joined', part, separator });
export const membersOf = (members: readonly Member[], separator: Pattern): Pattern => ({
  kind: 'members',
  members,
  separator,
});
export const bracket = (rule: number): Pattern => ({ kind: 'bracket', rule });
export const optional = (part: Pattern): Pattern => repeat(part, 0, 1);
export const literal = (text: string): Pattern =>
  sequence(...Array.from(text, (c): Pattern => characters([[c.codePointAt(0) ?? 0, c.codePointAt(0) ?? 0]])));

/** Sorted and joined. */
export function normalize(set: Characters): Characters {
  const sorted = set.filter(([first, last]) => first <= last).toSorted((a, b) => a[0] - b[0]);
  const out: [number, number][] = [];
  for (const [first, last] of sorted) {
    const previous = out.at(-1);
    if (previous !== undefined && first <= previous[1] + 1) previous[1] = Math.max(previous[1], last);
    else out.push([first, last]);
  }
  return out;
}

/** All characters that are not in the set. */
export function complement(set: Characters): Characters {
  const out: [number, number][] = [];
  let next = 0;
  for (const [first, last] of normalize(set)) {
    if (first > next) out.push([next, first - 1]);
    next = last + 1;
  }
  if (next <= lastCodePoint) out.push([next, lastCodePoint]);
  return out;
}

export function intersect(a: Characters, b: Characters): Characters {
  return complement([...complement(a), ...complement(b)]);
}
