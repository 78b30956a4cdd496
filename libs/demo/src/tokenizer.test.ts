import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { loadTokenizer } from '@medmesh/text';
import { Tokenizer } from 'tokenizers';
import { describe, expect, it } from 'vitest';
import { baseConfig, contextLength } from './base-recipe.ts';
import { generateCorpus } from './corpus.ts';
import { demoHeldOutPath, demoRowsPath, demoTokenizerDir } from './paths.ts';
import { readDemoRows } from './read-rows.ts';
import { addedTokenId, tokenizerConfig, tokenizerJson } from './tokenizer-files.ts';
import { trainMerges } from './train-merges.ts';

const file = (name: string) => path.join(demoTokenizerDir, name);
const tokenizer = Tokenizer.fromFile(file('tokenizer.json'));

describe('the demo tokenizer', () => {
  it('is what training on the corpus gives, byte for byte', async () => {
    const trained = tokenizerJson(await trainMerges());
    expect(`${JSON.stringify(trained)}\n`).toBe(await readFile(file('tokenizer.json'), 'utf8'));
    const config = JSON.parse(await readFile(file('tokenizer_config.json'), 'utf8')) as unknown;
    expect(config).toEqual(tokenizerConfig(contextLength));
  });

  it('has the vocabulary size of the base and one id for each added token', async () => {
    expect(tokenizer.getVocabSize(true)).toBe(baseConfig.vocab_size);
    for (const token of ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<think>', '</think>'] as const) {
      expect((await tokenizer.encode(token)).getIds()).toEqual([addedTokenId(token)]);
    }
  });

  it('gives back every row and any other text exactly', async () => {
    const rows = [...(await readDemoRows(demoRowsPath)), ...(await readDemoRows(demoHeldOutPath))];
    const texts = [
      ...rows.flatMap((row) => [row.Question, row.Complex_CoT, row.Response]),
      ...Array.from(generateCorpus({ seed: 99, documentCount: 200 }), (document) => document.text),
      '  two spaces, 1234567890, tabs\t\tand\r\nline feeds\n\n',
      'naïve façade Ω≈ç√ 龘靐齉 🩺👩🏽‍⚕️ مرحبا שלום',
    ];
    for (const encoding of await tokenizer.encodeBatch(texts)) expect(encoding.getLength()).toBeGreaterThan(0);
    const decoded = await tokenizer.decodeBatch(
      (await tokenizer.encodeBatch(texts)).map((encoding) => encoding.getIds()),
      false,
    );
    expect(decoded).toEqual(texts);
  });

  it('normalises to NFC and cuts numbers into single digits', async () => {
    expect((await tokenizer.encode('cafe\u0301')).getIds()).toEqual((await tokenizer.encode('caf\u00e9')).getIds());
    expect((await tokenizer.encode('2026')).getLength()).toBe(4);
  });

  it('leaves room for the rows: each fits a quarter of the context beside its prompt', async () => {
    const rows = [...(await readDemoRows(demoRowsPath)), ...(await readDemoRows(demoHeldOutPath))];
    for (const row of rows) {
      const encoding = await tokenizer.encode(`${row.Question}${row.Complex_CoT}${row.Response}`);
      expect(encoding.getLength()).toBeLessThanOrEqual(160);
    }
  });

  it('loads as a published tokenizer, with a chat template and the tokens that end a reply', async () => {
    const loaded = await loadTokenizer(demoTokenizerDir);
    expect(loaded.eosToken).toBe('<|endoftext|>');
    expect(loaded.thinkEndId).toBe(addedTokenId('</think>'));
    expect(loaded.chatTemplate).toContain('<|im_start|>');
    expect(new Set(loaded.stopTokenIds)).toEqual(new Set([addedTokenId('<|endoftext|>'), addedTokenId('<|im_end|>')]));
  });
});
