import { Failure } from '@medmesh/errors';
import { promptSlotNames, type SlotName, type Slots, slotNames } from './row.ts';
import type { Segment } from './segment.ts';

/** A template text, cut at its slots. */
export type Piece = { readonly literal: string } | { readonly slot: SlotName };

const refuse = (field: string, what: string): Failure =>
  new Failure('invalid_argument', `${field}: ${what}`, {
    reason: 'TEMPLATE_INVALID',
    fields: [{ field, description: what }],
  });

/** Cuts `Question: {{question}}` at its slots. A slot of another name is `invalid_argument` and named. */
export function parseSlots(field: string, text: string): Piece[] {
  const pieces: Piece[] = [];
  let done = 0;
  for (const match of text.matchAll(/\{\{([^{}]*)\}\}/g)) {
    const name = match[1]!.trim();
    if (!slotNames.includes(name as SlotName)) {
      throw refuse(
        field,
        `unknown slot {{${name.slice(0, 60)}}}; the slots are ${slotNames.map((s) => `{{${s}}}`).join(', ')}`,
      );
    }
    if (match.index > done) pieces.push({ literal: text.slice(done, match.index) });
    pieces.push({ slot: name as SlotName });
    done = match.index + match[0].length;
  }
  if (done < text.length) pieces.push({ literal: text.slice(done) });
  return pieces;
}

/** A prompt may hold what is asked, never what shall be answered. */
export function checkPromptPieces(field: string, pieces: readonly Piece[]): void {
  const slot = pieces.find((p) => 'slot' in p && !promptSlotNames.includes(p.slot));
  if (slot !== undefined && 'slot' in slot) {
    throw refuse(field, `the prompt holds {{${slot.slot}}}, which the model shall write; move it to the completion`);
  }
}

/** A completion must hold the answer. */
export function checkCompletionPieces(field: string, pieces: readonly Piece[]): void {
  if (!pieces.some((p) => 'slot' in p && (p.slot === 'response' || p.slot === 'output'))) {
    throw refuse(
      field,
      'the completion holds neither {{response}} nor {{output}}: every row would teach the same text',
    );
  }
}

/** Renders the prompt side. A slot without a value is `invalid_argument`. */
export function renderPromptPieces(pieces: readonly Piece[], slots: Slots): Segment[] {
  return pieces.map((p) => {
    if ('literal' in p) return { kind: 'prompt', text: p.literal, special: true };
    const text = slots[p.slot];
    if (text === undefined) {
      throw new Failure('invalid_argument', `the template needs a value for {{${p.slot}}}`, {
        reason: 'SLOT_MISSING',
        fields: [{ field: p.slot, description: 'the template has this slot; give it a value' }],
      });
    }
    return { kind: 'prompt', text, special: false };
  });
}

/** Renders the completion side, without the end-of-sequence token. */
export function renderCompletionPieces(pieces: readonly Piece[], slots: Required<Slots>): Segment[] {
  return pieces.map((p) => {
    if ('literal' in p) return { kind: 'markup', text: p.literal, special: true };
    const kind =
      p.slot === 'reasoning' ? 'reasoning' : p.slot === 'response' || p.slot === 'output' ? 'response' : 'markup';
    return { kind, text: slots[p.slot], special: false };
  });
}

/** The literal text of `pieces` before the first of `slots`; undefined if none of them occurs. */
export function literalBefore(pieces: readonly Piece[], slots: readonly SlotName[]): string | undefined {
  const at = pieces.findIndex((p) => 'slot' in p && slots.includes(p.slot));
  if (at < 0) return undefined;
  return pieces
    .slice(0, at)
    .map((p) => ('literal' in p ? p.literal : ''))
    .join('');
}
