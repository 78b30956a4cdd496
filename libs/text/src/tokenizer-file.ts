import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Failure } from '@medmesh/errors';

/** Largest accepted file of each kind, in bytes. The largest published tokenizer.json (256k vocabulary) has 33 MB. */
const maxTokenizerBytes = 64 * 2 ** 20;
const maxSmallFileBytes = 4 * 2 ** 20;
const maxTemplateBytes = 256 * 2 ** 10;
/** Ids must lie below this; published vocabularies end near 262k. */
const maxVocabulary = 2 ** 20;

/** A token that is matched in text as a whole, before the vocabulary's merges are tried. */
export type AddedToken = {
  readonly id: number;
  readonly content: string;
  /** Left out by `decode(…, { skipSpecialTokens: true })`. */
  readonly special: boolean;
  /** Matches only where no word character touches it. */
  readonly singleWord: boolean;
  /** Swallows white space before or after it. */
  readonly leftStrip: boolean;
  readonly rightStrip: boolean;
};

/** What a tokenizer folder holds, checked. */
export type TokenizerFiles = {
  /** `sha256:<hex>` of tokenizer.json as it lies on disk. */
  readonly digest: string;
  /** tokenizer.json without added tokens, truncation and padding: encodes every text as plain text. */
  readonly plainJson: string;
  readonly addedTokens: readonly AddedToken[];
  /** Piece of every id; holes (ids nobody uses) are undefined. */
  readonly pieces: readonly (string | undefined)[];
  /** Whether pieces are GPT-2 byte letters; otherwise `▁` is a space and `<0x0A>` a byte. */
  readonly byteLevel: boolean;
  /** Whether decoding drops the space that encoding puts before the first word. */
  readonly stripsFirstSpace: boolean;
  readonly bosToken: string | undefined;
  readonly eosToken: string | undefined;
  /** `add_bos_token` / `add_eos_token` of tokenizer_config.json, where given. */
  readonly addBos: boolean | undefined;
  readonly addEos: boolean | undefined;
  /** End-of-sequence ids of generation_config.json and config.json. */
  readonly configuredEosIds: readonly number[];
  readonly chatTemplate: string | undefined;
};

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
type JsonObject = { [key: string]: Json };

const bad = (file: string, what: string, cause?: unknown): Failure =>
  new Failure('invalid_argument', `${file}: ${what}`, {
    reason: 'TOKENIZER_INVALID',
    metadata: { file },
    ...(cause === undefined ? {} : { cause }),
  });

const isObject = (v: Json | undefined): v is JsonObject => typeof v === 'object' && v !== null && !Array.isArray(v);

/** Reads and checks a tokenizer folder. Every fault is `invalid_argument` naming the file and what is wrong with it. */
export async function readTokenizerFiles(dir: string): Promise<TokenizerFiles> {
  const bytes = await readBounded(dir, 'tokenizer.json', maxTokenizerBytes);
  if (bytes === undefined) {
    throw bad('tokenizer.json', 'not found; a model needs the tokenizer file it was published with');
  }
  const file = parseObject('tokenizer.json', bytes);
  const config = await readObject(dir, 'tokenizer_config.json');
  const specialMap = await readObject(dir, 'special_tokens_map.json');
  const generation = await readObject(dir, 'generation_config.json');
  const model = await readObject(dir, 'config.json');
  const template = await readBounded(dir, 'chat_template.jinja', maxTemplateBytes);
  const templateFile = await readObject(dir, 'chat_template.json');

  const addedTokens = readAddedTokens(file);
  const pieces = readVocabulary(file);
  for (const token of addedTokens) pieces[token.id] = token.content;
  const decoder = JSON.stringify(file['decoder'] ?? null);
  const name = (key: string): string | undefined => tokenName(config[key]) ?? tokenName(specialMap[key]);
  return {
    digest: `sha256:${createHash('sha256').update(bytes).digest('hex')}`,
    plainJson: JSON.stringify({ ...file, added_tokens: [], truncation: null, padding: null }),
    addedTokens,
    pieces,
    byteLevel: decoder.includes('"ByteLevel"'),
    stripsFirstSpace: decoder.includes('"Strip"') || decoder.includes('"Metaspace"'),
    bosToken: name('bos_token'),
    eosToken: name('eos_token'),
    addBos: typeof config['add_bos_token'] === 'boolean' ? config['add_bos_token'] : undefined,
    addEos: typeof config['add_eos_token'] === 'boolean' ? config['add_eos_token'] : undefined,
    configuredEosIds: [...new Set([...idsOf(generation['eos_token_id']), ...idsOf(model['eos_token_id'])])],
    chatTemplate:
      template === undefined
        ? templateOfConfig(templateFile['chat_template'] ?? config['chat_template'])
        : decodeUtf8('chat_template.jinja', template),
  };
}

function readAddedTokens(file: JsonObject): AddedToken[] {
  const list = file['added_tokens'] ?? [];
  if (!Array.isArray(list)) throw bad('tokenizer.json', 'added_tokens is not a list');
  const seen = new Map<string, number>();
  return list.map((entry, i) => {
    const where = `added_tokens[${i}]`;
    if (!isObject(entry)) throw bad('tokenizer.json', `${where} is not an object`);
    const { id, content } = entry;
    checkId(id, where);
    if (typeof content !== 'string' || content === '') throw bad('tokenizer.json', `${where}.content is not a text`);
    if (seen.has(content)) throw bad('tokenizer.json', `${where} repeats the content of id ${seen.get(content)}`);
    seen.set(content, id);
    return {
      id,
      content,
      special: entry['special'] === true,
      singleWord: entry['single_word'] === true,
      leftStrip: entry['lstrip'] === true,
      rightStrip: entry['rstrip'] === true,
    };
  });
}

function readVocabulary(file: JsonObject): (string | undefined)[] {
  const model = file['model'];
  if (!isObject(model)) throw bad('tokenizer.json', 'model is missing');
  // Old files leave the type out; only BPE has merges.
  const type = model['type'] ?? (Array.isArray(model['merges']) ? 'BPE' : undefined);
  const vocab = model['vocab'];
  const pieces: (string | undefined)[] = [];
  const put = (piece: string, id: Json | undefined): void => {
    checkId(id, 'model.vocab');
    if (pieces[id] !== undefined) throw bad('tokenizer.json', `model.vocab gives id ${id} to two tokens`);
    pieces[id] = piece;
  };
  if (type === 'BPE' && isObject(vocab)) {
    for (const [piece, id] of Object.entries(vocab)) put(piece, id);
  } else if (type === 'Unigram' && Array.isArray(vocab)) {
    vocab.forEach((entry, id) => {
      if (!Array.isArray(entry) || typeof entry[0] !== 'string')
        throw bad('tokenizer.json', `model.vocab[${id}] is not [piece, score]`);
      put(entry[0], id);
    });
  } else {
    throw bad(
      'tokenizer.json',
      `model type ${JSON.stringify(type ?? null).slice(0, 40)} is not supported; use BPE or Unigram`,
    );
  }
  if (pieces.length === 0) throw bad('tokenizer.json', 'model.vocab is empty');
  // The native tokenizer cuts so many bytes off merged pieces without looking whether they have them, and ends the process when they do not.
  const prefix = model['continuing_subword_prefix'] ?? '';
  if (type === 'BPE' && prefix !== '') {
    throw bad(
      'tokenizer.json',
      'model.continuing_subword_prefix is not empty, which a BPE of whole bytes has no use for',
    );
  }
  return pieces;
}

function checkId(id: Json | undefined, where: string): asserts id is number {
  if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= maxVocabulary) {
    throw bad(
      'tokenizer.json',
      `${where} has the id ${JSON.stringify(id)?.slice(0, 40)}; ids are whole numbers from 0 to ${maxVocabulary - 1}`,
    );
  }
}

/** Special tokens are written as a text or as `{ content }`. */
function tokenName(v: Json | undefined): string | undefined {
  if (typeof v === 'string') return v;
  return isObject(v) && typeof v['content'] === 'string' ? v['content'] : undefined;
}

const idsOf = (v: Json | undefined): number[] =>
  (Array.isArray(v) ? v : [v]).filter((id): id is number => typeof id === 'number' && Number.isInteger(id) && id >= 0);

/** Some files carry several templates by name; `default` is the one for conversations. */
function templateOfConfig(v: Json | undefined): string | undefined {
  const text = Array.isArray(v) ? v.filter(isObject).find((entry) => entry['name'] === 'default')?.['template'] : v;
  if (typeof text !== 'string') return undefined;
  if (text.length > maxTemplateBytes) throw bad('chat_template', `is longer than ${maxTemplateBytes} characters`);
  return text;
}

async function readObject(dir: string, name: string): Promise<JsonObject> {
  const bytes = await readBounded(dir, name, maxSmallFileBytes);
  return bytes === undefined ? {} : parseObject(name, bytes);
}

async function readBounded(dir: string, name: string, limit: number): Promise<Buffer | undefined> {
  const path = join(dir, name);
  const info = await stat(path).catch((e: NodeJS.ErrnoException) => {
    if (e.code === 'ENOENT' || e.code === 'ENOTDIR') return undefined;
    throw e;
  });
  if (info === undefined) return undefined;
  if (!info.isFile()) throw bad(name, 'is not a regular file');
  if (info.size > limit) throw bad(name, `has ${info.size} bytes; at most ${limit} are accepted`);
  return readFile(path);
}

function decodeUtf8(name: string, bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw bad(name, 'is not valid UTF-8', cause);
  }
}

function parseObject(name: string, bytes: Uint8Array): JsonObject {
  const text = decodeUtf8(name, bytes);
  let value: Json;
  try {
    value = JSON.parse(text) as Json;
  } catch (cause) {
    throw bad(name, 'is not valid JSON', cause);
  }
  if (!isObject(value)) throw bad(name, 'is not a JSON object');
  return value;
}
