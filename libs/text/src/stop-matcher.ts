import { Failure } from '@medmesh/errors';

/** Text that may be sent, and the stop string that ended it, if one did. */
export type StopResult = { readonly text: string; readonly matched?: string };

export type StopMatcher = {
  /** Takes the next text. Once a stop string has matched, nothing more comes out. */
  push(text: string): StopResult;
  /** What was held back, at the end of the generation. */
  flush(): string;
};

const limits = { count: 16, length: 256 };

/**
 * Finds stop strings in text that arrives in pieces, and holds back only what could begin one.
 *
 * The stop string that is complete first wins, as if the text came one character at a time; of several complete at
 * the same place, the longest. So the result does not depend on how the text is cut. The stop string itself is not sent.
 */
export function createStopMatcher(stops: readonly string[]): StopMatcher {
  if (stops.length > limits.count || stops.some((s) => s === '' || s.length > limits.length)) {
    throw new Failure(
      'invalid_argument',
      `stop: give at most ${limits.count} strings of 1 to ${limits.length} characters`,
      { reason: 'FIELD_INVALID', fields: [{ field: 'stop', description: 'too many, too long, or empty' }] },
    );
  }
  let held = '';
  let matched: string | undefined;
  return {
    push(text) {
      if (matched !== undefined) return { text: '', matched };
      held += text;
      const first = firstComplete(held, stops);
      if (first !== undefined) {
        matched = first.stop;
        const before = held.slice(0, first.start);
        held = '';
        return { text: before, matched };
      }
      const keep = pendingLength(held, stops);
      const out = held.slice(0, held.length - keep);
      held = held.slice(held.length - keep);
      return { text: out };
    },
    flush() {
      const rest = held;
      held = '';
      return rest;
    },
  };
}

function firstComplete(text: string, stops: readonly string[]): { stop: string; start: number } | undefined {
  let best: { stop: string; start: number } | undefined;
  for (const stop of stops) {
    const start = text.indexOf(stop);
    if (start < 0) continue;
    const end = start + stop.length;
    const bestEnd = best === undefined ? Number.POSITIVE_INFINITY : best.start + best.stop.length;
    if (end < bestEnd || (end === bestEnd && best !== undefined && stop.length > best.stop.length))
      best = { stop, start };
  }
  return best;
}

/** Length of the longest end of `text` that begins a stop string. */
function pendingLength(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    for (let n = Math.min(stop.length - 1, text.length); n > longest; n--) {
      if (text.endsWith(stop.slice(0, n))) longest = n;
    }
  }
  return longest;
}
