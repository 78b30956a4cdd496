import { copyInto, type TextTokenizer } from './tokenizer.ts';

/**
 * What a run of text is part of. `markup` is the template's own text inside the completion (`</think>`), `eos` the token
 * that ends a turn.
 */
export type SegmentKind = 'prompt' | 'reasoning' | 'response' | 'markup' | 'eos';

/** A run of rendered text. */
export type Segment = {
  readonly kind: SegmentKind;
  readonly text: string;
  /** True: the template's own text, in which special tokens are special. False: a row's or user's text, always plain. */
  readonly special: boolean;
};

/** Tokens `start` (inclusive) to `end` (exclusive) are of one kind. */
export type TokenSpan = { readonly kind: SegmentKind; readonly start: number; readonly end: number };

/** Tokens of one rendered example or prompt. `spans` cover `ids` in order without gaps. */
export type EncodedSegments = { readonly ids: Uint32Array; readonly spans: readonly TokenSpan[] };

/** Joins neighbours of equal kind and origin, and leaves empty runs out. */
export function mergeRuns(segments: readonly Segment[]): Segment[] {
  const runs: Segment[] = [];
  for (const s of segments) {
    if (s.text === '') continue;
    const last = runs.at(-1);
    if (last !== undefined && last.kind === s.kind && last.special === s.special) {
      runs[runs.length - 1] = { ...last, text: last.text + s.text };
    } else {
      runs.push(s);
    }
  }
  return runs;
}

/** The rendered text. */
export const textOf = (segments: readonly Segment[]): string => segments.map((s) => s.text).join('');

/** Template text repeats in every row: its tokens are kept, at most so many texts of at most so many characters. */
const templateCacheLimit = { texts: 512, characters: 8192 };
const templateCaches = new WeakMap<TextTokenizer, Map<string, Uint32Array>>();

/**
 * Encodes rendered examples. Each maximal run of equal kind and origin is encoded apart. So no token straddles the end
 * of the prompt, a prompt has the same tokens when it is trained on and when it is served, and row text cannot take part
 * in a special token.
 */
export async function encodeSegments(
  tokenizer: TextTokenizer,
  examples: readonly (readonly Segment[])[],
): Promise<EncodedSegments[]> {
  const runs = examples.map(mergeRuns);
  const cache = templateCaches.get(tokenizer) ?? new Map<string, Uint32Array>();
  templateCaches.set(tokenizer, cache);

  const plain: string[] = [];
  const missing = new Set<string>();
  for (const run of runs.flat()) {
    if (!run.special) plain.push(run.text);
    else if (!cache.has(run.text)) missing.add(run.text);
  }
  const wanted = [...missing];
  const [plainIds, templateIds] = await Promise.all([
    tokenizer.encodeBatch(plain),
    tokenizer.encodeBatch(wanted, { parseSpecialTokens: true }),
  ]);
  // What this batch needs stays at hand even when the cache is full.
  const fresh = new Map(wanted.map((text, i) => [text, templateIds[i]!]));
  for (const [text, ids] of fresh) {
    if (text.length <= templateCacheLimit.characters && cache.size < templateCacheLimit.texts) cache.set(text, ids);
  }

  let next = 0;
  const parts = runs.map((list) =>
    list.map((run) => (run.special ? (cache.get(run.text) ?? fresh.get(run.text)!) : plainIds[next++]!)),
  );
  // One buffer for the batch, as in `pack`.
  const all = new Uint32Array(parts.flat().reduce((n, ids) => n + ids.length, 0));
  let begin = 0;
  return runs.map((list, i) => {
    const spans = spansOf(list, parts[i]!);
    const length = spans.at(-1)?.end ?? 0;
    const ids = all.subarray(begin, begin + length);
    begin += length;
    copyInto(ids, parts[i]!);
    return { ids, spans };
  });
}

/** The token ranges of runs with these ids. Neighbours of one kind are one span; a run without tokens has none. */
function spansOf(runs: readonly Segment[], ids: readonly Uint32Array[]): TokenSpan[] {
  const spans: TokenSpan[] = [];
  let start = 0;
  runs.forEach(({ kind }, i) => {
    const end = start + ids[i]!.length;
    const last = spans.at(-1);
    if (last?.kind === kind) spans[spans.length - 1] = { kind, start: last.start, end };
    else if (end > start) spans.push({ kind, start, end });
    start = end;
  });
  return spans;
}
