import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/**
 * A byte-level tokenizer small enough to read, for tests: 256 bytes, a few merges, and the added tokens that chat
 * models have. It encodes any text.
 */
export function tinyTokenizerJson(): Record<string, unknown> {
  const letters = byteLetters();
  const vocab: Record<string, number> = {};
  for (const letter of letters) vocab[letter] = Object.keys(vocab).length;
  const merges = ['t h', 'th e', 'Ġ the', 'a n', 'an d', 'Ġ and', 'i n', 'Ċ Ċ', '# #', '## #'];
  for (const merge of merges) vocab[merge.replace(' ', '')] = Object.keys(vocab).length;
  const added = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<think>', '</think>'];
  const first = Object.keys(vocab).length;
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added.map((content, i) => ({
      id: first + i,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: !content.includes('think'),
    })),
    normalizer: { type: 'NFC' },
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: true },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: false,
      byte_fallback: false,
      vocab,
      merges,
    },
  };
}

/** A chat template in the ChatML manner. */
export const tinyChatTemplate =
  "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}" +
  "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

export type TinyTokenizerOptions = {
  /** Written over tokenizer.json's top-level fields. */
  readonly tokenizer?: Record<string, unknown>;
  /** Written over tokenizer_config.json's fields. */
  readonly config?: Record<string, unknown>;
  /** Default: `tinyChatTemplate`; null leaves it out. */
  readonly chatTemplate?: string | null;
};

/** Writes the tiny tokenizer's files into a folder, which is made if absent. */
export async function writeTinyTokenizer(dir: string, o: TinyTokenizerOptions = {}): Promise<string> {
  await mkdir(dir, { recursive: true });
  const config = { eos_token: '<|im_end|>', bos_token: null, add_bos_token: false, ...o.config };
  await writeFile(join(dir, 'tokenizer.json'), JSON.stringify({ ...tinyTokenizerJson(), ...o.tokenizer }));
  await writeFile(join(dir, 'tokenizer_config.json'), JSON.stringify(config));
  await writeFile(join(dir, 'generation_config.json'), JSON.stringify({ eos_token_id: [266, 268] }));
  if (o.chatTemplate !== null) await writeFile(join(dir, 'chat_template.jinja'), o.chatTemplate ?? tinyChatTemplate);
  return dir;
}

/** The GPT-2 alphabet: one letter for each byte, in byte order. */
function byteLetters(): string[] {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, b) => {
    const printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
    return String.fromCodePoint(printable ? b : next++);
  });
}
