import type { MicroBatch } from '@medmesh/engine';
import type { TextTokenizer } from '@medmesh/text';
import { type CorpusDocument, generateCorpus } from './corpus.ts';

/** How many rows of the corpus are wanted, and how long they are. */
export type PretrainingOptions = {
  readonly seed: number;
  readonly rowCount: number;
  readonly tokensPerRow: number;
};

/** Documents encoded at a time. */
const documentsPerBatch = 2000;

/** The next texts of the corpus. The iterator stays open, which `take` would not leave it. */
function nextTexts(documents: Iterator<CorpusDocument>): string[] {
  return Array.from({ length: documentsPerBatch }, () => documents.next())
    .filter((result) => result.done !== true)
    .map((result) => result.value.text);
}

/**
 * The corpus as rows of equal length: documents one after the other, each closed by the end-of-text token, cut where a
 * row is full. Think tags count as the tokens they name.
 */
export async function pretrainingRows(tokenizer: TextTokenizer, options: PretrainingOptions): Promise<Uint32Array[]> {
  const wanted = options.rowCount * options.tokensPerRow;
  const ids = new Uint32Array(wanted);
  let filled = 0;
  const documents = generateCorpus({ seed: options.seed, documentCount: Number.MAX_SAFE_INTEGER });
  while (filled < wanted) {
    for (const encoded of await tokenizer.encodeBatch(nextTexts(documents), { parseSpecialTokens: true })) {
      const document = Uint32Array.of(...encoded, tokenizer.eosTokenId).subarray(0, wanted - filled);
      ids.set(document, filled);
      filled += document.length;
    }
  }
  return Array.from({ length: options.rowCount }, (_, row) =>
    ids.subarray(row * options.tokensPerRow, (row + 1) * options.tokensPerRow),
  );
}

/** Rows side by side as one micro-batch; every token but the first of a row is a label. */
export function packRows(rows: readonly Uint32Array[]): MicroBatch {
  const rowOffsets = new Uint32Array(rows.length + 1);
  rows.forEach((row, index) => {
    rowOffsets[index + 1] = (rowOffsets[index] ?? 0) + row.length;
  });
  const inputIds = new Uint32Array(rowOffsets.at(-1) ?? 0);
  rows.forEach((row, index) => {
    inputIds.set(row, rowOffsets[index]);
  });
  return { inputIds, lossMask: new Uint8Array(inputIds.length).fill(1), rowOffsets };
}
