import { dataset } from '@medmesh/proto';
import type { EncodedSegments, SegmentKind, TokenSpan } from '@medmesh/text';
import type { DropCode } from '../rows/raw-row.ts';

const { DropReasonCode, LossMask, OverlongPolicy } = dataset;

/** A row as it is trained on. */
export type FittedRow = {
  readonly ids: Uint32Array;
  /** 1 where the token counts in the loss: where the model shall predict it. */
  readonly mask: Uint8Array;
  readonly spans: readonly TokenSpan[];
  /** Tokens up to where the last answer begins. */
  readonly promptTokenCount: number;
  readonly trainableTokenCount: number;
  readonly truncated: boolean;
};

export type FitSpec = Pick<dataset.DatasetVersionSpec, 'lossMask' | 'maxTokens' | 'overlong'>;

/** Masks a row, and makes it fit `maxTokens` as the policy says. A cut row is flagged, never cut in silence. */
export function fitRow(encoded: EncodedSegments, spec: FitSpec): FittedRow | { readonly fault: DropCode } {
  const fits = encoded.ids.length <= spec.maxTokens;
  const kept = fits ? encoded : cut(encoded, spec);
  if (kept === undefined) return { fault: DropReasonCode.TOO_LONG };
  const mask = new Uint8Array(kept.ids.length);
  let trainableTokenCount = 0;
  for (const span of kept.spans) {
    if (!counts(span.kind, spec.lossMask)) continue;
    mask.fill(1, span.start, span.end);
    trainableTokenCount += span.end - span.start;
  }
  // The first token has nothing before it to be predicted from.
  const predictable = trainableTokenCount - (mask[0] ?? 0);
  if (predictable === 0) return { fault: DropReasonCode.NO_TRAINABLE_TOKENS };
  return { ...kept, mask, promptTokenCount: promptEnd(kept.spans), trainableTokenCount, truncated: !fits };
}

function counts(kind: SegmentKind, lossMask: dataset.LossMask): boolean {
  switch (lossMask) {
    case LossMask.ALL:
      return true;
    case LossMask.RESPONSE_ONLY:
      return kind === 'response' || kind === 'eos';
    default:
      return kind !== 'prompt';
  }
}

/** The row cut to `maxTokens`, or undefined if the policy cannot make it fit. The prompt is never cut. */
function cut({ ids, spans }: EncodedSegments, spec: FitSpec): EncodedSegments | undefined {
  if (spec.overlong === OverlongPolicy.TRUNCATE_RIGHT) {
    if (promptEnd(spans) >= spec.maxTokens) return undefined;
    return remove(ids, spans, spec.maxTokens, ids.length);
  }
  if (spec.overlong === OverlongPolicy.TRUNCATE_LEFT) {
    const reasoning = spans.findLast((s) => s.kind === 'reasoning');
    const surplus = ids.length - spec.maxTokens;
    if (reasoning === undefined || reasoning.end - reasoning.start < surplus) return undefined;
    return remove(ids, spans, reasoning.start, reasoning.start + surplus);
  }
  return undefined;
}

/** Tokens `from` (inclusive) to `to` (exclusive) taken out. */
function remove(ids: Uint32Array, spans: readonly TokenSpan[], from: number, to: number): EncodedSegments {
  const kept = new Uint32Array(ids.length - (to - from));
  kept.set(ids.subarray(0, from));
  kept.set(ids.subarray(to), from);
  const moved = (at: number): number => (at <= from ? at : Math.max(from, at - (to - from)));
  return {
    ids: kept,
    spans: spans
      .map((s) => ({ kind: s.kind, start: moved(s.start), end: moved(s.end) }))
      .filter((s) => s.end > s.start),
  };
}

const promptEnd = (spans: readonly TokenSpan[]): number => spans.findLast((s) => s.kind === 'prompt')?.end ?? 0;
