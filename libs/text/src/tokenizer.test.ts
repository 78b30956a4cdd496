import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { tinyTokenizerJson, writeTinyTokenizer } from './testing/tiny-tokenizer.ts';
import { loadTokenizer, type TextTokenizer } from './tokenizer.ts';

let dir: string;
let tokenizer: TextTokenizer;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'text-tokenizer-'));
  tokenizer = await loadTokenizer(await writeTinyTokenizer(join(dir, 'tiny')));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const anyText = fc.string({ unit: 'binary', maxLength: 60 });

describe('a tokenizer', () => {
  test('describes itself', () => {
    expect(tokenizer.digest).toMatch(/^sha256:[0-9a-f]{64}$/);
    expect(tokenizer.vocabularySize).toBe(256 + 10 + 5);
    expect(tokenizer.eosToken).toBe('<|im_end|>');
    expect(tokenizer.piece(tokenizer.eosTokenId)).toBe('<|im_end|>');
    expect(tokenizer.stopTokenIds).toEqual([268, 266]);
    expect(tokenizer.thinkStartId).toBe(269);
    expect(tokenizer.thinkEndId).toBe(270);
    expect(tokenizer.addsBos).toBe(false);
  });

  test('decodes what it encoded, up to Unicode normalisation', async () => {
    await fc.assert(
      fc.asyncProperty(anyText, async (text) => {
        const wellFormed = text.toWellFormed();
        expect(tokenizer.decode(await tokenizer.encode(wellFormed))).toBe(wellFormed.normalize('NFC'));
      }),
    );
  });

  test('composes characters before it encodes them', async () => {
    expect(await tokenizer.encode('fie\u0300vre')).toEqual(await tokenizer.encode('fi\u00e8vre'));
  });

  test('keeps the text of special tokens plain unless it is asked to parse it', async () => {
    const plain = await tokenizer.encode('a<|im_end|></think>b');
    expect(plain.every((id) => id < 266)).toBe(true);
    const parsed = await tokenizer.encode('a<|im_end|></think>b', { parseSpecialTokens: true });
    expect([...parsed]).toEqual([...(await tokenizer.encode('a')), 268, 270, ...(await tokenizer.encode('b'))]);
  });

  test('leaves special tokens out of decoded text on demand, but not the think tags', () => {
    expect(tokenizer.decode([269, 268])).toBe('<think><|im_end|>');
    expect(tokenizer.decode([269, 268], { skipSpecialTokens: true })).toBe('<think>');
  });

  test('a token that is part of a character decodes to its bytes', async () => {
    const ids = await tokenizer.encode('疼');
    expect(ids.length).toBe(3);
    expect(Buffer.concat([...ids].map((id) => tokenizer.tokenBytes(id))).toString()).toBe('疼');
    expect(tokenizer.decode(ids.slice(0, 1))).toBe('\uFFFD');
  });

  test('an id outside the vocabulary is named', () => {
    expect(() => tokenizer.decode([999])).toThrow(/token id 999 is outside the vocabulary; ids go from 0 to 270/);
  });

  test('puts the beginning token in front where its configuration says so', async () => {
    const folder = await writeTinyTokenizer(join(dir, 'bos'), {
      config: { bos_token: { content: '<|endoftext|>' }, add_bos_token: true },
    });
    const withBos = await loadTokenizer(folder);
    expect(withBos.addsBos).toBe(true);
    expect([...(await withBos.encode('a', { addSpecialTokens: true }))]).toEqual([266, ...(await withBos.encode('a'))]);
  });

  test('ignores truncation and padding that a tokenizer file asks for', async () => {
    const folder = await writeTinyTokenizer(join(dir, 'truncating'), {
      tokenizer: { truncation: { direction: 'Right', max_length: 3, strategy: 'LongestFirst', stride: 0 } },
    });
    expect((await (await loadTokenizer(folder)).encode('zzzzzzzzzz')).length).toBe(10);
  });
});

describe('a hostile or broken tokenizer folder', () => {
  const changed = (change: (file: ReturnType<typeof tinyTokenizerJson>) => unknown): string => {
    const file = tinyTokenizerJson();
    change(file);
    return JSON.stringify(file);
  };
  const model = (file: Record<string, unknown>): Record<string, unknown> => file['model'] as Record<string, unknown>;
  const vocab = (file: Record<string, unknown>): Record<string, number> =>
    model(file)['vocab'] as Record<string, number>;
  const added = (file: Record<string, unknown>): Record<string, unknown>[] =>
    file['added_tokens'] as Record<string, unknown>[];

  const files: [string, string | Uint8Array, RegExp][] = [
    ['what is not JSON', '{"model": {', /tokenizer.json: is not valid JSON/],
    ['what is not UTF-8', Uint8Array.of(0x7b, 0xff, 0x7d), /not valid UTF-8/],
    ['a list', '[]', /not a JSON object/],
    ['a file without a model', '{}', /model is missing/],
    ['an unsupported model', '{"model":{"type":"WordPiece","vocab":{}}}', /"WordPiece" is not supported/],
    ['an id that is not a whole number', changed((f) => Object.assign(vocab(f), { x: 1.5 })), /has the id 1.5/],
    [
      'an id that would need gigabytes',
      changed((f) => Object.assign(added(f)[0]!, { id: 4e9 })),
      /has the id 4000000000/,
    ],
    ['one id for two tokens', changed((f) => Object.assign(vocab(f), { xx: 3 })), /gives id 3 to two tokens/],
    [
      'merges of unknown tokens',
      changed((f) => Object.assign(model(f), { merges: ['qq zz'] })),
      /the tokenizer refuses it/,
    ],
    [
      'a special token that plain text can spell',
      changed((f) => Object.assign(added(f)[0]!, { content: 'the', id: vocab(f)['the'] })),
      /rows could forge it/,
    ],
  ];

  test.each(files)('%s is refused', async (name, content, what) => {
    const folder = await writeTinyTokenizer(join(dir, name));
    await writeFile(join(folder, 'tokenizer.json'), content);
    await expect(loadTokenizer(folder)).rejects.toMatchObject({
      code: 'invalid_argument',
      message: expect.stringMatching(what),
    });
  });

  test('no tokenizer.json', async () => {
    await expect(loadTokenizer(join(dir, 'nowhere'))).rejects.toThrow(/tokenizer.json: not found/);
  });
  test('no end-of-sequence token', async () => {
    const folder = await writeTinyTokenizer(join(dir, 'b11'), { config: { eos_token: null } });
    await writeFile(join(folder, 'generation_config.json'), '{}');
    await expect(loadTokenizer(folder)).rejects.toThrow(/names no eos_token/);
  });
  test('a file too large to read', async () => {
    const folder = await writeTinyTokenizer(join(dir, 'b12'));
    await truncate(join(folder, 'tokenizer.json'), 65 * 2 ** 20);
    await expect(loadTokenizer(folder)).rejects.toThrow(/has 68157440 bytes; at most 67108864/);
  });
});
