import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DuckDBInstance } from '@duckdb/node-api';
import { Tokenizer as Judge } from '@huggingface/tokenizers';
import { dataset } from '@medmesh/proto';
import { sharedInputs, sharedInputsMissing } from '@medmesh/testkit';
import { loadTokenizer, type TextTokenizer } from '@medmesh/text';
import iconv from 'iconv-lite';
import { beforeAll, describe, expect, test } from 'vitest';
import { droppedRows, formatFiles, rowsOf, type TestFile } from '../../test/format-fixture.ts';

const shared = sharedInputs();
const data = join(shared ?? '', 'data');
const present = shared !== null;
if (!present) console.info(`real rows skipped: ${sharedInputsMissing}`);

const medical = (name: string): TestFile => ({ name, bytes: readFileSync(join(data, 'medical', name)) });
const { LossMask } = dataset;

describe.skipIf(!present).each(['qwen2.5', 'deepseek-r1-distill-qwen'])(
  'the medical rows through the %s tokenizer',
  (name) => {
    const dir = join(data, 'tokenizers', name);
    let tokenizer: TextTokenizer;
    let judge: Judge;
    beforeAll(async () => {
      tokenizer = await loadTokenizer(dir);
      const read = (file: string): object => JSON.parse(readFileSync(join(dir, file), 'utf8')) as object;
      judge = new Judge(read('tokenizer.json'), read('tokenizer_config.json'));
    }, 60_000);

    test.each([
      ['medical_o1_zh_916.jsonl', 916],
      ['medical_o1_en_198.jsonl', 198],
    ])(
      '%s: counts, token totals and masks are those of the independent tokenizer',
      async (file, count) => {
        const source = medical(file);
        const result = await formatFiles(tokenizer, [source], { maxTokens: 8192, keepDuplicates: true });
        const built = rowsOf(result);
        expect(built.length).toBe(count);
        expect(result.stats).toMatchObject({
          rowCount: count,
          usedRowCount: count,
          droppedRowCount: 0,
          truncatedRowCount: 0,
        });

        // The judge encodes the rendered text's parts; where they meet is the template's own decision, written out here.
        const ids = (text: string): number[] => judge.encode(text, { add_special_tokens: false }).ids;
        const lines = Buffer.from(source.bytes as Uint8Array)
          .toString('utf8')
          .trimEnd()
          .split('\n');
        const [before, after] = tokenizer.decode(built[0]!.ids).split(JSON.parse(lines[0]!).Question as string) as [
          string,
          string,
        ];
        const opening = ids(before);
        const closing = ids(after.slice(0, after.indexOf('<think>\n') + '<think>\n'.length));
        const thinkEnd = ids('\n</think>\n');
        const eos = ids(tokenizer.eosToken);
        let tokens = 0;
        let trainable = 0;
        const differing: number[] = [];
        lines.forEach((line, i) => {
          const row = JSON.parse(line) as { Question: string; Complex_CoT: string; Response: string };
          const prompt = [...opening, ...ids(row.Question), ...closing];
          const completion = [...ids(row.Complex_CoT), ...thinkEnd, ...ids(row.Response), ...eos];
          tokens += prompt.length + completion.length;
          trainable += completion.length;
          const expectedIds = [...prompt, ...completion].join();
          const expectedMask = [...prompt.map(() => 0), ...completion.map(() => 1)].join();
          if (built[i]!.ids.join() !== expectedIds || built[i]!.mask.join() !== expectedMask) differing.push(i);
        });
        expect(differing).toEqual([]);
        expect(result.stats.tokenCount).toBe(tokens);
        expect(result.stats.trainableTokenCount).toBe(trainable);
      },
      120_000,
    );
  },
);

describe.skipIf(!present)('real files of other shapes', () => {
  let tokenizer: TextTokenizer;
  beforeAll(async () => {
    tokenizer = await loadTokenizer(join(data, 'tokenizers/deepseek-r1-distill-qwen'));
  }, 60_000);

  test('the GB18030 CSV, its columns mapped to the instruction shape', async () => {
    const file = { ...medical('toyhom_im_sample.gb18030.csv'), charset: 'gb18030' };
    const result = await formatFiles(tokenizer, [file], {
      columns: { shape: { $case: 'instruction', value: { instruction: 'ask', input: '', output: 'answer' } } },
      template: { template: { $case: 'builtin', value: 'instruction' } },
      dropInvalid: true,
      keepDuplicates: true,
      lossMask: LossMask.RESPONSE_ONLY,
    });
    // An independent decoder and an independent CSV reader.
    const utf8 = iconv.decode(Buffer.from(file.bytes as Uint8Array), 'gb18030');
    const expected = await readCsvByDuckDb(utf8);
    expect(expected.length).toBe(7644);
    expect(result.stats.rowCount).toBe(expected.length);
    const usable = expected.filter((r) => r.ask.trim() !== '' && r.answer.trim() !== '');
    expect(result.stats.usedRowCount).toBe(usable.length);
    const texts = rowsOf(result).map((r) =>
      tokenizer.decode(
        r.ids.filter((_, i) => r.mask[i] === 1),
        { skipSpecialTokens: true },
      ),
    );
    expect(texts.filter((text, i) => text !== usable[i]!.answer.normalize('NFC'))).toEqual([]);
  }, 120_000);

  test('the GB18030 CSV read as UTF-8 is BAD_ENCODING, not mojibake', async () => {
    const result = await formatFiles(tokenizer, [medical('toyhom_im_sample.gb18030.csv')], {}, { keep: false });
    expect(droppedRows(result.stats)['BAD_ENCODING']?.length).toBe(100);
    expect(result.stats.usedRowCount).toBe(0);
  }, 60_000);

  test('the ShareGPT file through the published chat template', async () => {
    const file = medical('medicalgpt_sft_1k.jsonl');
    const chat = { template: { $case: 'chat' as const, value: { system: '' } } };
    const result = await formatFiles(tokenizer, [file], {
      template: chat,
      maxTokens: 4096,
      keepDuplicates: true,
      dropInvalid: true,
    });
    expect(result.stats.rowCount).toBe(1000);
    const rows = Buffer.from(file.bytes as Uint8Array)
      .toString('utf8')
      .trimEnd()
      .split('\n')
      .map((l) => JSON.parse(l) as { conversations: { value: string }[] });
    const built = rowsOf(result);
    const wrong = built.filter(({ index, ids }) => {
      const [asked, answered] = rows[index]!.conversations.map((c) => c.value.normalize('NFC'));
      return (
        tokenizer.decode(ids) !==
        `<｜begin▁of▁sentence｜><｜User｜>${asked}<｜Assistant｜><think>\n\n</think>\n\n${answered}<｜end▁of▁sentence｜>`
      );
    });
    expect(wrong).toEqual([]);
    expect(built.length + result.stats.droppedRowCount).toBe(1000);
    expect(built.length).toBeGreaterThan(950);
  }, 60_000);

  test('the instruction files in JSON arrays', async () => {
    const files = [medical('chatdoctor5k.json'), medical('huatuo_liver_cancer.json')];
    const result = await formatFiles(tokenizer, files, {
      template: { template: { $case: 'builtin', value: 'instruction' } },
      dropInvalid: true,
    });
    expect(result.stats.rowCount).toBe(5452 + 1000);
    expect(result.stats.usedRowCount + result.stats.droppedRowCount).toBe(6452);
    expect(Object.keys(droppedRows(result.stats)).filter((r) => !['DUPLICATE', 'EMPTY_FIELD'].includes(r))).toEqual([]);
  }, 60_000);

  test('columns of other names', async () => {
    const columns = {
      shape: {
        $case: 'reasoning' as const,
        value: { question: 'Question', reasoning: 'Context', response: 'Complex_CoT' },
      },
    };
    const file = medical('pubmedqa_train_500.jsonl');
    const result = await formatFiles(tokenizer, [file], { columns, keepDuplicates: true });
    expect(result.stats).toMatchObject({ rowCount: 500, usedRowCount: 500 });
    const first = JSON.parse(
      Buffer.from(file.bytes as Uint8Array)
        .toString('utf8')
        .split('\n')[0]!,
    ) as Record<string, string>;
    const text = tokenizer.decode(rowsOf(result)[0]!.ids, { skipSpecialTokens: true });
    expect(text.endsWith(`<think>\n${first['Context']}\n</think>\n${first['Complex_CoT']}`)).toBe(true);
  }, 60_000);
});

async function readCsvByDuckDb(utf8: string): Promise<{ ask: string; answer: string }[]> {
  const dir = await mkdtemp(join(tmpdir(), 'formatter-csv-'));
  try {
    await writeFile(join(dir, 'rows.csv'), utf8);
    const connection = await (await DuckDBInstance.create(':memory:')).connect();
    const read = await connection.runAndReadAll(
      `SELECT coalesce(ask, '') AS ask, coalesce(answer, '') AS answer FROM read_csv('${dir}/rows.csv', header = true, all_varchar = true, quote = '"', escape = '"', parallel = false)`,
    );
    return read.getRowObjects() as { ask: string; answer: string }[];
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}
