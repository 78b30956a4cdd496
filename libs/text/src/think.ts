import type { Segment } from './segment.ts';
import { literalBefore, type Piece } from './slot-text.ts';

export const thinkStart = '<think>';
export const thinkEnd = '</think>';

/** Whether a prompt asks for reasoning: as the template has it, always, or never. */
export type ReasoningMode = 'auto' | 'on' | 'off';

/** Whether the template's own text ends inside `<think>`. Tags inside row text do not count. */
export function endsInsideThink(segments: readonly Segment[]): boolean {
  const own = segments
    .filter((s) => s.special)
    .map((s) => s.text)
    .join('');
  return own.lastIndexOf(thinkStart) > own.lastIndexOf(thinkEnd);
}

/**
 * What a prompt gets appended to switch reasoning on or off. It is exactly the text that begins a completion in
 * training, and of kind `markup` as there: so the served tokens are a prefix of trained ones in every mode.
 */
export function reasoningSwitch(
  mode: ReasoningMode,
  prompt: readonly Segment[],
  completion: { readonly withReasoning: readonly Piece[]; readonly withoutReasoning: readonly Piece[] },
): Segment[] {
  if (mode === 'auto') return [];
  const inside = endsInsideThink(prompt);
  if (mode === 'on') {
    const open = literalBefore(completion.withReasoning, ['reasoning']) ?? '';
    return !inside && open.includes(thinkStart) ? [{ kind: 'markup', text: open, special: true }] : [];
  }
  const closed = literalBefore(completion.withoutReasoning, ['response', 'output']) ?? '';
  return closed.includes(thinkEnd) ? [{ kind: 'markup', text: closed, special: true }] : [];
}
