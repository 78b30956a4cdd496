import { byteLevelAlphabet } from 'tokenizers';

/** How Qwen2 cuts text before byte pairs merge: contractions, words with their leading space, single digits, the rest. */
const qwen2Split =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** Ends a document of the corpus and a fine-tuned answer. */
export const endOfTextToken = '<|endoftext|>';

/** Tokens outside the merges, in the order of their ids. Special ones vanish from decoded text; think tags stay. */
const addedTokens = [
  { content: endOfTextToken, special: true },
  { content: '<|im_start|>', special: true },
  { content: '<|im_end|>', special: true },
  { content: '<think>', special: false },
  { content: '</think>', special: false },
] as const;

/** Ids in all: 256 bytes, the merges, the added tokens. A multiple of 64, which suits matrix products. */
export const vocabularySize = 3072;

/** How many merges of a trained tokenizer are kept: the rest of the vocabulary. */
export const mergeCount = vocabularySize - 256 - addedTokens.length;

/** A merge as tokenizer.json lists it: the two tokens that become one, most frequent pairs first. */
export type Merge = readonly [left: string, right: string];

/** The chat template: ChatML, as Qwen's models speak it. */
const chatTemplate =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false };

function addedTokenRecord({ content, special }: (typeof addedTokens)[number]) {
  return { content, single_word: false, lstrip: false, rstrip: false, normalized: false, special };
}

const firstAddedId = vocabularySize - addedTokens.length;

/** Everything of tokenizer.json but the learnt part. */
function tokenizerRecord(
  addedTokenRecords: readonly object[],
  vocabulary: readonly string[],
  merges: readonly Merge[],
) {
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokenRecords,
    normalizer: { type: 'NFC' },
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: qwen2Split }, behavior: 'Isolated', invert: false },
        byteLevel,
      ],
    },
    post_processor: byteLevel,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(vocabulary.map((token, id) => [token, id])),
      merges,
    },
  };
}

/** A tokenizer.json in Qwen2's manner that has learnt nothing yet: what the trainer starts from. */
export function untrainedTokenizerJson(): object {
  return tokenizerRecord([], [], []);
}

/** The tokenizer.json of a byte-level BPE tokenizer in Qwen2's manner with the first `mergeCount` of `merges`. */
export function tokenizerJson(merges: readonly Merge[]): object {
  if (merges.length < mergeCount) {
    throw new RangeError(`${merges.length} merges were trained and ${mergeCount} are needed; give a longer corpus`);
  }
  const kept = merges.slice(0, mergeCount);
  return tokenizerRecord(
    addedTokens.map((token, index) => ({ id: firstAddedId + index, ...addedTokenRecord(token) })),
    [...byteLevelAlphabet().sort(), ...kept.map(([left, right]) => left + right)],
    kept,
  );
}

/** The tokenizer_config.json that stands beside it. */
export function tokenizerConfig(contextLength: number): object {
  return {
    add_bos_token: false,
    add_prefix_space: false,
    added_tokens_decoder: Object.fromEntries(
      addedTokens.map((token, index) => [String(firstAddedId + index), addedTokenRecord(token)]),
    ),
    bos_token: null,
    chat_template: chatTemplate,
    clean_up_tokenization_spaces: false,
    eos_token: endOfTextToken,
    errors: 'replace',
    model_max_length: contextLength,
    pad_token: endOfTextToken,
    split_special_tokens: false,
    tokenizer_class: 'Qwen2Tokenizer',
    unk_token: null,
  };
}

/** The id of an added token. */
export function addedTokenId(content: (typeof addedTokens)[number]['content']): number {
  return firstAddedId + addedTokens.findIndex((token) => token.content === content);
}
