import { invalidField } from '@medmesh/errors';
import type { dataset } from '@medmesh/proto';
import type { FormatterDeps } from './deps.ts';

const bounds = { texts: 256, textBytes: 2 ** 20, ids: 2 ** 20 } as const;

type TokenizerDeps = Pick<FormatterDeps, 'tokenizers'>;

export async function tokenize(
  deps: TokenizerDeps,
  request: dataset.TokenizeRequest,
  signal: AbortSignal,
): Promise<dataset.TokenizeResponse> {
  const { texts, addSpecialTokens, parseSpecialTokens } = request;
  if (texts.length === 0 || texts.length > bounds.texts)
    throw invalidField('texts', `has ${texts.length} texts; give 1 to ${bounds.texts}`);
  const long = texts.findIndex((t) => Buffer.byteLength(t) > bounds.textBytes);
  if (long >= 0)
    throw invalidField(
      `texts[${long}]`,
      `has ${Buffer.byteLength(texts[long]!)} bytes; at most ${bounds.textBytes} are accepted`,
    );
  const { tokenizer } = await deps.tokenizers.get(request.model, signal);
  const sequences = await tokenizer.encodeBatch(texts, { addSpecialTokens, parseSpecialTokens });
  return {
    sequences: sequences.map((ids) => ({ ids: [...ids], pieces: Array.from(ids, (id) => tokenizer.decode([id])) })),
  };
}

export async function detokenize(
  deps: TokenizerDeps,
  request: dataset.DetokenizeRequest,
  signal: AbortSignal,
): Promise<dataset.DetokenizeResponse> {
  const { ids, skipSpecialTokens } = request;
  if (ids.length > bounds.ids) throw invalidField('ids', `has ${ids.length} ids; at most ${bounds.ids} are accepted`);
  const { tokenizer } = await deps.tokenizers.get(request.model, signal);
  return { text: tokenizer.decode(ids, { skipSpecialTokens }) };
}

export async function getTokenizer(
  deps: TokenizerDeps,
  request: dataset.GetTokenizerRequest,
  signal: AbortSignal,
): Promise<dataset.Tokenizer> {
  const { tokenizer } = await deps.tokenizers.get(request.model, signal);
  return {
    digest: tokenizer.digest,
    vocabularySize: tokenizer.vocabularySize,
    eosTokenId: tokenizer.eosTokenId,
    bosTokenId: tokenizer.bosTokenId,
    hasChatTemplate: tokenizer.chatTemplate !== undefined,
  };
}
