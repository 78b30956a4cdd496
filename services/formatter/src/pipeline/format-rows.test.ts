import { inspect } from 'node:util';
import { dataset } from '@medmesh/proto';
import type { TextTokenizer } from '@medmesh/text';
import { beforeAll, describe, expect, test } from 'vitest';
import { droppedRows, formatFiles, jsonl, loadTinyTokenizer, reasoningRow, rowsOf } from '../../test/format-fixture.ts';
import type { FormatProgress } from './format-rows.ts';

const { LossMask, OverlongPolicy } = dataset;
let tokenizer: TextTokenizer;
beforeAll(async () => {
  tokenizer = await loadTinyTokenizer();
});

const rows = (n: number, from = 0): Record<string, unknown>[] =>
  Array.from({ length: n }, (_, i) => reasoningRow(from + i));
const file = (list: readonly unknown[]) => ({ name: 'rows.jsonl', bytes: jsonl(list) });

describe('formatting', () => {
  test('gives every row its tokens, mask and index, in order', async () => {
    const result = await formatFiles(tokenizer, [file(rows(500))], { maxTokens: 512 });
    const shardRows = rowsOf(result);
    expect(shardRows.map((r) => r.index)).toEqual(Array.from({ length: 500 }, (_, i) => i));
    const { ids, mask } = shardRows[7]!;
    expect(tokenizer.decode(ids)).toMatch(
      /### Question:\nQuestion 7\?\n\n### Response:\n<think>\nThought 7\.\n<\/think>\nAnswer 7\.<\|im_end\|>$/,
    );
    expect(tokenizer.decode(ids.filter((_, i) => mask[i] === 1))).toBe('Thought 7.\n</think>\nAnswer 7.<|im_end|>');
    expect(result.stats).toMatchObject({
      rowCount: 500,
      usedRowCount: 500,
      droppedRowCount: 0,
      truncatedRowCount: 0,
      validationRowCount: 0,
    });
    expect(result.stats.tokenCount).toBe(shardRows.reduce((n, r) => n + r.ids.length, 0));
    expect(result.stats.trainableTokenCount).toBe(shardRows.reduce((n, r) => n + r.mask.reduce((a, b) => a + b, 0), 0));
    expect(result.train).toMatchObject({
      rowCount: 500,
      tokenCount: result.stats.tokenCount,
      maxRowTokens: result.stats.rowTokens?.max,
    });
  });

  test('twice gives the same bytes', async () => {
    const run = () => formatFiles(tokenizer, [file(rows(300))], { maxTokens: 512, validationFraction: 0.2 });
    const [first, second] = [await run(), await run()];
    expect(second.shards).toEqual(first.shards);
    expect(second.inputDigests).toEqual(first.inputDigests);
  });

  test('numbers rows over all sources, whatever their formats', async () => {
    const csv = {
      name: 'b.csv',
      bytes: `Question,Complex_CoT,Response\n${rows(2, 2)
        .map((r) => Object.values(r).join(','))
        .join('\n')}`,
    };
    const json = { name: 'c.json', bytes: JSON.stringify(rows(2, 4)) };
    const result = await formatFiles(tokenizer, [file(rows(2)), csv, json], { maxTokens: 512 });
    const decoded = rowsOf(result).map((r) => /Answer (\d)/.exec(tokenizer.decode(r.ids))![1]);
    expect(decoded).toEqual(['0', '1', '2', '3', '4', '5']);
    expect(result.inputDigests.length).toBe(3);
  });

  test('takes the first rows only where a limit is set', async () => {
    const result = await formatFiles(tokenizer, [file(rows(3)), file(rows(300, 3))], { maxTokens: 512, rowLimit: 5 });
    expect(rowsOf(result).map((r) => r.index)).toEqual([0, 1, 2, 3, 4]);
    expect(result.stats.rowCount).toBe(5);
    expect(result.inputDigests.length).toBe(2);
  });

  test('leaves duplicates out and counts them, unless they are to be kept', async () => {
    const list = [reasoningRow(0), reasoningRow(1), { ...reasoningRow(0), Question: ' Question  0?\n' }];
    expect(droppedRows((await formatFiles(tokenizer, [file(list)], { maxTokens: 512 })).stats)).toEqual({
      DUPLICATE: [2],
    });
    const kept = await formatFiles(tokenizer, [file(list)], { maxTokens: 512, keepDuplicates: true });
    expect(kept.stats).toMatchObject({ usedRowCount: 3, droppedRowCount: 0 });
  });

  test('splits by row and seed, and equal rows never straddle the splits', async () => {
    const list = [...rows(400), ...rows(400)];
    const split = async (splitSeed: number) => {
      const result = await formatFiles(tokenizer, [file(list)], {
        maxTokens: 512,
        validationFraction: 0.25,
        keepDuplicates: true,
        splitSeed,
      });
      expect(result.stats.validationRowCount).toBe(rowsOf(result, 'validation').length);
      expect(result.validation.rowCount + result.train.rowCount).toBe(800);
      return rowsOf(result, 'validation').map((r) => r.index);
    };
    const heldOut = await split(1);
    expect(heldOut.length).toBeGreaterThan(100);
    expect(heldOut.length).toBeLessThan(300);
    const first = heldOut.filter((i) => i < 400);
    expect(heldOut.filter((i) => i >= 400)).toEqual(first.map((i) => i + 400));
    expect(await split(1)).toEqual(heldOut);
    expect(await split(2)).not.toEqual(heldOut);
  });

  test('reports progress in rows and bytes', async () => {
    const bytes = jsonl(rows(1000));
    const seen: FormatProgress[] = [];
    await formatFiles(
      tokenizer,
      [{ name: 'rows.jsonl', bytes }],
      { maxTokens: 512 },
      { onProgress: (p) => seen.push(p) },
    );
    expect(seen.length).toBeGreaterThan(2);
    expect(seen.map((p) => p.rowCount)).toEqual(seen.map((p) => p.rowCount).toSorted((a, b) => a - b));
    expect(seen.at(-1)).toEqual({ rowCount: 1000, byteCount: Buffer.byteLength(bytes) });
  });

  test('stops when it is aborted', async () => {
    const aborted = AbortSignal.abort(new Error('enough'));
    await expect(formatFiles(tokenizer, [file(rows(10))], {}, { signal: aborted })).rejects.toThrow('enough');
  });
});

describe('gates', () => {
  const sentence = 'one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen';
  const answering = (i: number, response: string) => ({ ...reasoningRow(i), Response: response });

  test('leave out rows that overlap an evaluation set, by index, whatever column holds the text there', async () => {
    const list = [
      reasoningRow(0),
      answering(1, `So: ${sentence}.`),
      answering(2, sentence.slice(0, 50)),
      reasoningRow(3),
    ];
    const evaluation = [{ name: 'test.jsonl', bytes: `${jsonl([{ item: { passage: [sentence] } }])}broken\n` }];
    const { stats } = await formatFiles(tokenizer, [file(list)], { maxTokens: 512 }, { evaluation });
    expect(droppedRows(stats)).toEqual({ CONTAMINATED: [1] });
    expect(stats.usedRowCount).toBe(3);
    expect(stats.warnings).toEqual(['evaluation source 0: 1 rows cannot be read, and nothing was compared with them']);
  });

  test('leave out rows with patient identifiers where that is asked for', async () => {
    const list = [reasoningRow(0), answering(1, 'MRN: 00123456'), answering(2, 'call 13812345678')];
    const { stats } = await formatFiles(tokenizer, [file(list)], { maxTokens: 512, dropIdentifiers: true });
    expect(droppedRows(stats)).toEqual({ IDENTIFIER_FOUND: [1, 2] });
    expect((await formatFiles(tokenizer, [file(list)], { maxTokens: 512 })).stats.usedRowCount).toBe(3);
  });

  test('leave out near-duplicates of rows that are used, and only of those', async () => {
    const row = (response: string) => ({ Question: 'Which?', Complex_CoT: sentence, Response: response });
    const list = [
      row(`${sentence} a`),
      row(`${sentence} b`),
      { ...row('MRN: 001234'), Complex_CoT: 'x' },
      row('another'),
      { ...row('MRN'), Complex_CoT: 'x' },
    ];
    const spec = { maxTokens: 2048, nearDuplicateSimilarity: 0.7, dropIdentifiers: true };
    const { stats } = await formatFiles(tokenizer, [file(list)], spec);
    expect(droppedRows(stats)).toEqual({ DUPLICATE: [1], IDENTIFIER_FOUND: [2] });
  });
});

describe('a file with bad rows', () => {
  const good = reasoningRow(0);
  const bad: [string, string | Buffer, string][] = [
    ['a missing field', '{"Question":"q","Complex_CoT":"c"}', 'MISSING_FIELD'],
    ['an empty field', '{"Question":" ","Complex_CoT":"c","Response":"r"}', 'EMPTY_FIELD'],
    ['a wrong type', '{"Question":"q","Complex_CoT":"c","Response":7}', 'NOT_TEXT'],
    ['bad JSON', '{"Question":', 'BAD_JSON'],
    ['bad UTF-8', Buffer.from([0x7b, 0x22, 0xc3, 0x28, 0x22, 0x7d]), 'BAD_ENCODING'],
    ['a field of 10 MB', JSON.stringify({ ...good, Response: 'x'.repeat(10_000_000) }), 'FIELD_TOO_LARGE'],
    ['a row of 20 MB', `"${'x'.repeat(20_000_000)}`, 'FIELD_TOO_LARGE'],
  ];
  const fileWith = (line: string | Buffer) => ({
    name: 'rows.jsonl',
    bytes: Buffer.concat([
      Buffer.from(jsonl([good])),
      Buffer.from(line as string),
      Buffer.from(`\n${jsonl([reasoningRow(2)])}`),
    ]),
  });

  test.each(bad)('%s: the build fails and names the row', async (_, line, reason) => {
    await expect(formatFiles(tokenizer, [fileWith(line)], { maxTokens: 512 })).rejects.toMatchObject({
      code: 'invalid_argument',
      reason: 'DATASET_INVALID',
      message: expect.stringContaining(`1 of 3 rows cannot be used: ${reason} in 1 (row 1)`),
      metadata: { [reason]: '1' },
    });
  });

  test.each(bad)('%s: the row is left out and counted where that is allowed', async (_, line, reason) => {
    const result = await formatFiles(tokenizer, [fileWith(line)], { maxTokens: 512, dropInvalid: true });
    expect(droppedRows(result.stats)).toEqual({ [reason]: [1] });
    expect(rowsOf(result).map((r) => r.index)).toEqual([0, 2]);
  });

  test.each(bad)('%s: validation counts it and does not fail', async (_, line, reason) => {
    const result = await formatFiles(tokenizer, [fileWith(line)], { maxTokens: 512 }, { keep: false });
    expect(droppedRows(result.stats)).toEqual({ [reason]: [1] });
    expect(result.files).toEqual([]);
  });

  test('where none can be used fails whatever is allowed', async () => {
    await expect(
      formatFiles(tokenizer, [file([{ ...good, Response: '' }])], { dropInvalid: true }),
    ).rejects.toMatchObject({
      reason: 'NO_ROWS',
      message: 'none of the 1 rows can be used',
    });
  });

  test('never has its text in an error', async () => {
    const canary = 'Zacharias-Canary';
    const lines = [
      `{"Question":"${canary}`,
      JSON.stringify({ [canary]: canary }),
      JSON.stringify({ ...good, Response: { [canary]: canary } }),
    ];
    for (const o of [{}, { dropInvalid: true }]) {
      const failure = await formatFiles(
        tokenizer,
        lines.map((bytes) => ({ name: 'rows.jsonl', bytes })),
        o,
      ).catch((e: unknown) => e as Error);
      expect(failure).toBeInstanceOf(Error);
      expect(inspect(failure, { depth: 10 })).not.toContain(canary);
    }
  });

  test('whose columns no shape knows is told what to set', async () => {
    await expect(formatFiles(tokenizer, [file([{ text: 'x' }])])).rejects.toMatchObject({
      reason: 'COLUMNS_UNKNOWN',
      message: expect.stringMatching(/set columns/),
    });
  });

  test('of another kind than declared is named by number', async () => {
    await expect(
      formatFiles(tokenizer, [file(rows(1)), { name: 'b.json', bytes: '{"a":1}' }], { maxTokens: 512 }),
    ).rejects.toThrow(/^source 1: the file is not a JSON array/);
  });

  test('with more rows than a version may have is refused', async () => {
    await expect(
      formatFiles(tokenizer, [file(rows(11))], { maxTokens: 512 }, { limits: { maxRowCount: 10 } }),
    ).rejects.toThrow(/more than 10 rows/);
  });
});

describe('an over-long row', () => {
  const long = { Question: 'q', Complex_CoT: 'because '.repeat(100), Response: 'r' };
  const build = (overlong: dataset.OverlongPolicy, o: object = {}) =>
    formatFiles(tokenizer, [file([reasoningRow(0), long])], { maxTokens: 512, overlong, ...o });

  test('fails the build under ERROR, also where invalid rows may be left out', async () => {
    for (const dropInvalid of [false, true]) {
      await expect(build(OverlongPolicy.ERROR, { dropInvalid })).rejects.toMatchObject({
        reason: 'DATASET_INVALID',
        message: expect.stringMatching(/TOO_LONG in 1 \(row 1\).*raise max_tokens or set overlong/),
      });
    }
  });

  test('is left out and counted under DROP', async () => {
    const result = await build(OverlongPolicy.DROP);
    expect(droppedRows(result.stats)).toEqual({ TOO_LONG: [1] });
  });

  test.each([
    ['TRUNCATE_RIGHT', OverlongPolicy.TRUNCATE_RIGHT, /<think>\nbecause because [^<]*$/],
    ['TRUNCATE_LEFT', OverlongPolicy.TRUNCATE_LEFT, /Question:\nq\n(?:.|\n)*because \n<\/think>\nr<\|im_end\|>$/],
  ] as const)('is cut and counted under %s', async (_, policy, text) => {
    const result = await build(policy);
    expect(result.stats).toMatchObject({ truncatedRowCount: 1, usedRowCount: 2 });
    const [, row] = rowsOf(result);
    expect(row!.ids.length).toBe(512);
    expect(tokenizer.decode(row!.ids)).toMatch(text);
  });

  test('that loses all it teaches has NO_TRAINABLE_TOKENS', async () => {
    const o = { lossMask: LossMask.RESPONSE_ONLY };
    await expect(build(OverlongPolicy.TRUNCATE_RIGHT, o)).rejects.toThrow(/NO_TRAINABLE_TOKENS in 1 \(row 1\)/);
    expect(droppedRows((await build(OverlongPolicy.TRUNCATE_RIGHT, { ...o, dropInvalid: true })).stats)).toEqual({
      NO_TRAINABLE_TOKENS: [1],
    });
  });
});

describe('a template', () => {
  test('that cannot hold a row is a fault with the row’s index', async () => {
    const messages = ['user', 'assistant', 'user', 'assistant'].map((role) => ({ role, content: 'x' }));
    await expect(formatFiles(tokenizer, [file([{ messages }])])).rejects.toThrow(
      /^row 0: template 'medical-reasoning' holds one question/,
    );
    const chat = { template: { $case: 'chat' as const, value: { system: '' } } };
    const result = await formatFiles(tokenizer, [file([{ messages }])], { template: chat });
    expect(tokenizer.decode(rowsOf(result)[0]!.ids.filter((_, i) => rowsOf(result)[0]!.mask[i] === 1))).toBe(
      'x<|im_end|>x<|im_end|>',
    );
  });

  test('keeps special-token text of rows plain', async () => {
    const row = { Question: '<|im_end|></think>', Complex_CoT: '</think>', Response: '<|endoftext|>' };
    const [built] = rowsOf(await formatFiles(tokenizer, [file([row])], { maxTokens: 512 }));
    const specials = [tokenizer.thinkStartId, tokenizer.thinkEndId, tokenizer.eosTokenId];
    expect(built!.ids.filter((id) => id >= 266)).toEqual(specials);
  });
});
