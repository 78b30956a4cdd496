import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { Tokenizer as Judge } from '@huggingface/tokenizers';
import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { compileJinja } from './jinja.ts';
import type { Row, Turn } from './row.ts';
import { encodeSegments, textOf } from './segment.ts';
import { resolveTemplate, type TemplateSpec } from './template.ts';
import { loadTokenizer, type TextTokenizer } from './tokenizer.ts';

const data = join(process.env['MEDMESH_SHARED'] ?? resolve(import.meta.dirname, '../../../../shared'), 'data');
const present = existsSync(join(data, 'tokenizers'));
if (!present) console.info(`real tokenizers skipped: ${data} is not there (set MEDMESH_SHARED)`);

type MedicalRow = { Question: string; Complex_CoT: string; Response: string };
/** Vitest's own comparison takes seconds for a million ids. */
const sameIds = (a: ArrayLike<number>, b: ArrayLike<number>): boolean =>
  a.length === b.length && Array.from(a).every((id, i) => id === b[i]);

const readRows = (name: string): Row[] =>
  readFileSync(join(data, 'medical', name), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as MedicalRow)
    .map((r) => ({ shape: 'reasoning', question: r.Question, reasoning: r.Complex_CoT, response: r.Response }));

describe.skipIf(!present).each(['qwen2.5', 'qwen3', 'deepseek-r1-distill-qwen'])('the %s tokenizer', (name) => {
  const dir = join(data, 'tokenizers', name);
  let tokenizer: TextTokenizer;
  let judge: Judge;
  let rows: Extract<Row, { shape: 'reasoning' }>[];
  const judged = (text: string): number[] => judge.encode(text, { add_special_tokens: false }).ids;

  beforeAll(async () => {
    tokenizer = await loadTokenizer(dir);
    const read = (file: string): object => JSON.parse(readFileSync(join(dir, file), 'utf8')) as object;
    judge = new Judge(read('tokenizer.json'), read('tokenizer_config.json'));
    rows = [...readRows('medical_o1_zh_916.jsonl'), ...readRows('medical_o1_en_198.jsonl')] as typeof rows;
  }, 60_000);

  test('gives the ids of the independent tokenizer on every medical row', async () => {
    expect(rows.length).toBe(916 + 198);
    // Qwen3 shares vocabulary and merges with Qwen2.5; a tenth of the rows shows that its file says so too.
    const judgedRows = name === 'qwen3' ? rows.filter((_, i) => i % 10 === 0) : rows;
    const texts = judgedRows.flatMap((r) => [r.question, r.reasoning, r.response]);
    const ids = await tokenizer.encodeBatch(texts);
    let tokens = 0;
    const differing: number[] = [];
    texts.forEach((text, i) => {
      tokens += ids[i]!.length;
      if (!sameIds(ids[i]!, judged(text))) differing.push(i);
    });
    expect(tokens).toBeGreaterThan(500 * judgedRows.length);
    expect(differing).toEqual([]);
    // The table look-up decodes to the rows' own text.
    expect(texts.filter((text, i) => tokenizer.decode(ids[i]!) !== text.normalize('NFC'))).toEqual([]);
  }, 120_000);

  test('parses special tokens as the independent tokenizer does', async () => {
    const fragment = fc.constantFrom(
      '<|im_start|>',
      '<|im_end|>',
      '<think>',
      '</think>',
      '<｜User｜>',
      '<｜end▁of▁sentence｜>',
      '<|endoftext|>',
      '发热',
      ' pain',
      '\n',
      ' ',
      '12',
      "'s",
    );
    await fc.assert(
      fc.asyncProperty(fc.array(fragment, { maxLength: 12 }), async (parts) => {
        const text = parts.join('');
        expect([...(await tokenizer.encode(text, { parseSpecialTokens: true }))]).toEqual(judged(text));
      }),
      { numRuns: 200 },
    );
  }, 60_000);

  test('never makes a special token of row text', async () => {
    const added = JSON.parse(readFileSync(join(dir, 'tokenizer.json'), 'utf8')) as {
      added_tokens: { id: number; content: string }[];
    };
    const ids = await tokenizer.encode(added.added_tokens.map((t) => `x ${t.content}${t.content} y`).join(''));
    const special = new Set(added.added_tokens.map((t) => t.id));
    expect([...ids].filter((id) => special.has(id))).toEqual([]);
  });

  const specs: TemplateSpec[] = [
    { template: { $case: 'builtin', value: 'medical-reasoning' } },
    { template: { $case: 'builtin', value: 'instruction' } },
    { template: { $case: 'chat', value: { system: '你是一名医生。' } } },
    {
      template: {
        $case: 'custom',
        value: { prompt: '问：{{question}}\n答：', completion: '{{reasoning}}\n\n{{response}}' },
      },
    },
  ];

  test.each(specs)(
    'trains on the tokens that it serves: %o',
    async (spec) => {
      const template = resolveTemplate(spec, tokenizer);
      const examples = rows.filter((_, i) => i % 5 === 0).flatMap((row) => [row, { ...row, reasoning: '' }]);
      const trained = await encodeSegments(
        tokenizer,
        examples.map((row) => template.renderExample(row)),
      );
      for (const reasoning of ['auto', 'on', 'off'] as const) {
        const rendered = examples.map((row) => template.renderPrompt({ question: row.question }, { reasoning }));
        const served = await encodeSegments(
          tokenizer,
          rendered.map((r) => r.segments),
        );
        examples.forEach((row, i) => {
          // A row with reasoning is served with it, a row without it without; the default prompt fits both.
          if ((reasoning === 'on') === (row.reasoning === '') && reasoning !== 'auto') return;
          const { ids, spans } = trained[i]!;
          const prefix = served[i]!.ids.length;
          expect(sameIds(served[i]!.ids, ids.subarray(0, prefix))).toBe(true);
          expect(prefix).toBeGreaterThanOrEqual(spans[0]!.end);
        });
      }
    },
    120_000,
  );

  test('renders its chat template as published', async () => {
    const template = resolveTemplate({ template: { $case: 'chat', value: { system: '' } } }, tokenizer);
    const published = compileJinja(tokenizer.chatTemplate!);
    const variables = {
      bos_token: tokenizer.bosToken ?? '',
      eos_token: tokenizer.eosToken,
      add_generation_prompt: true,
    };
    for (const row of rows) {
      const turns: Turn[] = [
        { role: 'system', content: '你是一名医生。' },
        { role: 'user', content: row.question },
        { role: 'assistant', content: row.response },
        { role: 'user', content: row.reasoning },
      ];
      const text = published({ ...variables, messages: turns });
      const prompt = template.renderPrompt(turns);
      expect(textOf(prompt.segments)).toBe(text);
      expect(prompt.startsInsideThink).toBe(name.startsWith('deepseek'));
    }
    const [encoded] = await encodeSegments(tokenizer, [
      template.renderPrompt({ question: rows[0]!.question }).segments,
    ]);
    const text = published({ ...variables, messages: [{ role: 'user', content: rows[0]!.question }] });
    expect([...encoded!.ids]).toEqual(judged(text));
  }, 60_000);
});

describe.skipIf(!present)('DeepSeek-R1-Distill-Qwen', () => {
  test('begins with one BOS, thinks first, and stops at its own end token', async () => {
    const tokenizer = await loadTokenizer(join(data, 'tokenizers', 'deepseek-r1-distill-qwen'));
    expect(tokenizer.bosTokenId).toBe(151646);
    expect(tokenizer.eosTokenId).toBe(151643);
    expect(tokenizer.thinkEndId).toBe(151649);
    const row: Row = { shape: 'reasoning', question: '阑尾炎怎么办？', reasoning: '先想一想。', response: '手术。' };
    for (const spec of [undefined, { template: { $case: 'chat', value: { system: '' } } } as const]) {
      const template = resolveTemplate(spec, tokenizer);
      const [encoded] = await encodeSegments(tokenizer, [template.renderExample(row)]);
      const ids = encoded!.ids;
      expect([...ids].filter((id) => id === 151646)).toEqual([151646]);
      expect(ids[0]).toBe(151646);
      expect(ids.at(-1)).toBe(151643);
      expect(template.renderPrompt({ question: '?' }).startsInsideThink).toBe(true);
    }
  }, 60_000);
});
