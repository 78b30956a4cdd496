import { Failure } from '@medmesh/errors';
import { Tokenizer as NativeTokenizer } from 'tokenizers';
import { createAddedTokenSplitter } from './added-tokens.ts';
import { byteLevelBytes, sentencePieceBytes } from './token-bytes.ts';
import { readTokenizerFiles, type TokenizerFiles } from './tokenizer-file.ts';

export type EncodeOptions = {
  /** Adds the tokenizer's own beginning and end tokens. Default false. */
  readonly addSpecialTokens?: boolean;
  /** Reads the text of added tokens (`<|im_end|>`, `</think>`) as those tokens. Default false: it stays plain text. */
  readonly parseSpecialTokens?: boolean;
};

/** A model's tokenizer. Encoding runs off the event loop; decoding is a table look-up. */
export type TextTokenizer = {
  /** `sha256:<hex>` of tokenizer.json. */
  readonly digest: string;
  /** Ids in use, added tokens included: the highest id plus one. The model's embedding may have more rows. */
  readonly vocabularySize: number;
  readonly eosTokenId: number;
  readonly eosToken: string;
  readonly bosTokenId: number | undefined;
  readonly bosToken: string | undefined;
  /** Whether a text that is not a chat prompt begins with the beginning-of-sequence token. */
  readonly addsBos: boolean;
  /** Every id that ends a generation: the tokenizer's own and those of generation_config.json and config.json. */
  readonly stopTokenIds: readonly number[];
  /** The published Jinja chat template. */
  readonly chatTemplate: string | undefined;
  /** Ids of `<think>` and `</think>`, where the vocabulary has them as single tokens. */
  readonly thinkStartId: number | undefined;
  readonly thinkEndId: number | undefined;
  encode(text: string, options?: EncodeOptions): Promise<Uint32Array>;
  encodeBatch(texts: readonly string[], options?: EncodeOptions): Promise<Uint32Array[]>;
  /** Text of ids. Bytes that are no UTF-8 become U+FFFD. An id outside the vocabulary is `invalid_argument`. */
  decode(ids: ArrayLike<number>, options?: { readonly skipSpecialTokens?: boolean }): string;
  /** Bytes of one token; empty for ids that nothing uses. */
  tokenBytes(id: number): Uint8Array;
  /** The vocabulary's own spelling of a token, e.g. `Ġthe`; empty for ids that nothing uses. */
  piece(id: number): string;
  /** Id of an added token by its exact content. */
  addedTokenId(content: string): number | undefined;
};

/**
 * Loads a tokenizer from a folder with `tokenizer.json` and, where the model has them, `tokenizer_config.json`,
 * `special_tokens_map.json`, `generation_config.json`, `config.json` and `chat_template.jinja`.
 *
 * The native tokenizer is built without the added tokens, so whatever it is given is plain text: a patient's question
 * that holds `<|im_end|>` cannot end a turn. Added tokens are found by this module, and only where a caller asks.
 * Building takes up to a second of one core, on the calling thread; a tokenizer is loaded once per model.
 */
export async function loadTokenizer(dir: string): Promise<TextTokenizer> {
  const files = await readTokenizerFiles(dir);
  const native = buildNative(files.plainJson);
  const addedByContent = new Map(files.addedTokens.map((t) => [t.content, t]));
  const addedIds = new Map(files.addedTokens.map((t) => [t.id, t]));
  await refuseUnsafeVocabulary(native, files);

  const idOf = (token: string | undefined): number | undefined => {
    if (token === undefined) return undefined;
    return addedByContent.get(token)?.id ?? native.tokenToId(token) ?? undefined;
  };
  const eosTokenId = idOf(files.eosToken) ?? files.configuredEosIds.find((id) => files.pieces[id] !== undefined);
  if (eosTokenId === undefined) {
    throw new Failure(
      'invalid_argument',
      'tokenizer_config.json names no eos_token of the vocabulary, and generation_config.json no eos_token_id',
      { reason: 'TOKENIZER_INVALID' },
    );
  }
  const bosTokenId = idOf(files.bosToken);
  const ends = await readOuterTokens(native, files, bosTokenId, eosTokenId);

  const split = createAddedTokenSplitter(files.addedTokens);
  const bytesOf = (id: number): Uint8Array => {
    const piece = files.pieces[id];
    if (piece === undefined) return new Uint8Array(0);
    if (addedIds.has(id)) return Buffer.from(piece, 'utf8');
    return files.byteLevel ? byteLevelBytes(piece) : sentencePieceBytes(piece);
  };
  const byteTable: (Uint8Array | undefined)[] = new Array(files.pieces.length);
  const tokenBytes = (id: number): Uint8Array => {
    if (!Number.isInteger(id) || id < 0) throw outsideVocabulary(id, files.pieces.length);
    // Embeddings are often padded past the vocabulary; such ids can be sampled and mean nothing.
    if (id >= files.pieces.length) return new Uint8Array(0);
    byteTable[id] ??= bytesOf(id);
    return byteTable[id];
  };

  const encodePlain = async (texts: readonly string[]): Promise<Uint32Array[]> => {
    if (texts.length === 0) return [];
    const encodings = await native.encodeBatch(texts as string[], { addSpecialTokens: false });
    return pack(encodings.map((e) => e.getIds()));
  };
  const encodeParsed = async (texts: readonly string[]): Promise<Uint32Array[]> => {
    const parts = texts.map(split);
    const stretches = parts.flatMap((list) => list.flatMap((p) => ('text' in p ? [p.text] : [])));
    const encoded = await encodePlain(stretches);
    let next = 0;
    return parts.map((list) => concat(list.map((p) => ('text' in p ? encoded[next++]! : Uint32Array.of(p.token.id)))));
  };
  const encodeBatch = async (texts: readonly string[], o: EncodeOptions = {}): Promise<Uint32Array[]> => {
    const ids = await (o.parseSpecialTokens === true ? encodeParsed(texts) : encodePlain(texts));
    return o.addSpecialTokens === true ? ids.map((body) => concat([ends.before, body, ends.after])) : ids;
  };

  return {
    digest: files.digest,
    vocabularySize: files.pieces.length,
    eosTokenId,
    eosToken: files.pieces[eosTokenId]!,
    bosTokenId,
    bosToken: bosTokenId === undefined ? undefined : files.bosToken,
    addsBos: bosTokenId !== undefined && ends.before.includes(bosTokenId),
    stopTokenIds: [...new Set([eosTokenId, ...files.configuredEosIds])],
    chatTemplate: files.chatTemplate,
    thinkStartId: addedByContent.get('<think>')?.id,
    thinkEndId: addedByContent.get('</think>')?.id,
    encode: async (text, o) => (await encodeBatch([text], o))[0]!,
    encodeBatch,
    decode(ids, o = {}) {
      const kept = Array.from(ids).filter(
        (id) => !(o.skipSpecialTokens === true && addedIds.get(id)?.special === true),
      );
      const outside = kept.find((id) => !(id >= 0 && id < files.pieces.length));
      if (outside !== undefined) throw outsideVocabulary(outside, files.pieces.length);
      const text = new TextDecoder('utf-8', { ignoreBOM: true }).decode(Buffer.concat(kept.map(tokenBytes)));
      const spaced = files.stripsFirstSpace && kept.length > 0 && !addedIds.has(kept[0]!);
      return spaced && text.startsWith(' ') ? text.slice(1) : text;
    },
    tokenBytes,
    piece: (id) => files.pieces[id] ?? '',
    addedTokenId: (content) => addedByContent.get(content)?.id,
  };
}

const outsideVocabulary = (id: number, size: number): Failure =>
  new Failure('invalid_argument', `token id ${id} is outside the vocabulary; ids go from 0 to ${size - 1}`, {
    reason: 'TOKEN_ID_INVALID',
  });

function buildNative(json: string): NativeTokenizer {
  try {
    return NativeTokenizer.fromString(json);
  } catch (cause) {
    // The native message names types and positions of the file; it cannot hold anything else.
    const detail = cause instanceof Error ? cause.message.slice(0, 300) : 'unknown error';
    throw new Failure('invalid_argument', `tokenizer.json: the tokenizer refuses it: ${detail}`, {
      reason: 'TOKENIZER_INVALID',
      cause,
    });
  }
}

/** A vocabulary whose merges spell out a special token would let row text forge it. */
async function refuseUnsafeVocabulary(native: NativeTokenizer, files: TokenizerFiles): Promise<void> {
  const contents = files.addedTokens.filter((t) => t.special || t.content.startsWith('<')).map((t) => t.content);
  if (contents.length === 0) return;
  const special = new Set(files.addedTokens.filter((t) => contents.includes(t.content)).map((t) => t.id));
  const encodings = await native.encodeBatch(contents, { addSpecialTokens: false });
  encodings.forEach((encoding, i) => {
    if (encoding.getIds().some((id) => special.has(id))) {
      throw new Failure(
        'invalid_argument',
        `tokenizer.json: plain text can spell the special token ${JSON.stringify(contents[i])}; rows could forge it`,
        { reason: 'TOKENIZER_INVALID' },
      );
    }
  });
}

/** What `addSpecialTokens` puts around a text: tokenizer_config.json decides, else the post-processor of the file. */
async function readOuterTokens(
  native: NativeTokenizer,
  files: TokenizerFiles,
  bosTokenId: number | undefined,
  eosTokenId: number,
): Promise<{ before: Uint32Array; after: Uint32Array }> {
  const bare = (await native.encode('a', null, { addSpecialTokens: false })).getIds();
  const dressed = (await native.encode('a', null, { addSpecialTokens: true })).getIds();
  const at = dressed.findIndex((_, i) => bare.every((id, j) => dressed[i + j] === id));
  let before = at < 0 ? [] : dressed.slice(0, at);
  let after = at < 0 ? [] : dressed.slice(at + bare.length);
  if (files.addBos === false) before = before.filter((id) => id !== bosTokenId);
  if (files.addBos === true && bosTokenId !== undefined && !before.includes(bosTokenId))
    before = [bosTokenId, ...before];
  if (files.addEos === false) after = after.filter((id) => id !== eosTokenId);
  if (files.addEos === true && !after.includes(eosTokenId)) after = [...after, eosTokenId];
  return { before: Uint32Array.from(before), after: Uint32Array.from(after) };
}

/** Each list of ids as a view into one buffer: a buffer for each of many short texts costs more than its ids. */
export function pack(lists: readonly ArrayLike<number>[]): Uint32Array[] {
  const all = new Uint32Array(lists.reduce((n, list) => n + list.length, 0));
  let at = 0;
  return lists.map((list) => {
    all.set(list, at);
    at += list.length;
    return all.subarray(at - list.length, at);
  });
}

/** One array of all ids, in order. */
export function concat(parts: readonly Uint32Array[]): Uint32Array {
  if (parts.length === 1) return parts[0]!;
  const out = new Uint32Array(parts.reduce((n, p) => n + p.length, 0));
  copyInto(out, parts);
  return out;
}

/** Writes all parts, in order, to the beginning of `out`. */
export function copyInto(out: Uint32Array, parts: readonly Uint32Array[]): void {
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
}
