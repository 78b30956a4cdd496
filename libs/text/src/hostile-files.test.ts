import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Failure } from '@medmesh/errors';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { compileJinja } from './jinja.ts';
import { tinyTokenizerJson, writeTinyTokenizer } from './testing/tiny-tokenizer.ts';
import { loadTokenizer } from './tokenizer.ts';

let dir: string;
beforeAll(async () => {
  dir = await writeTinyTokenizer(await mkdtemp(join(tmpdir(), 'text-hostile-')));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** The same files in every run, so that a failure repeats; HOSTILE_SEED tries others. */
const seed = Number(process.env['HOSTILE_SEED'] ?? 20261122);

/** What a spoiled file may have in the place of any value. */
const strange = fc.oneof(
  fc.constantFrom<Json>(null, true, -1, 0, 1.5, 2 ** 31, 1e300, '', 'Sequence', 'ByteLevel', '</think>', [], {}, [[]]),
  fc.jsonValue({ maxDepth: 1 }) as fc.Arbitrary<Json>,
);

/** Replaces, removes or repeats one value, found by walking down by `path`. */
function spoil(value: Json, path: readonly number[], how: 'replace' | 'remove' | 'repeat', by: Json): Json {
  const [step, ...rest] = path;
  if (step === undefined || value === null || typeof value !== 'object') return by;
  const keys = Object.keys(value);
  const key = keys[step % Math.max(1, keys.length)];
  if (key === undefined) return by;
  const copy = structuredClone(value) as Record<string, Json>;
  const next = copy[key] as Json;
  if (rest.length > 0 && next !== null && typeof next === 'object') copy[key] = spoil(next, rest, how, by);
  else if (how === 'replace') copy[key] = by;
  else if (how === 'remove') delete copy[key];
  else copy[`${key}0`] = next;
  return Array.isArray(value) ? Object.values(copy) : copy;
}

const mutation = fc.record({
  path: fc.array(fc.nat(400), { minLength: 1, maxLength: 6 }),
  how: fc.constantFrom('replace' as const, 'remove' as const, 'repeat' as const),
  by: strange,
});

/** Whether the folder gives a Failure that says the file is at fault, or a tokenizer that keeps its own promises. */
async function isHandled(): Promise<boolean> {
  const tokenizer = await loadTokenizer(dir).catch((error: unknown) => {
    if (error instanceof Failure && error.code === 'invalid_argument') return undefined;
    throw error;
  });
  if (tokenizer === undefined) return true;
  const ids = await tokenizer.encode('A 7 is </think> é 草', { parseSpecialTokens: true });
  const known = [...ids, tokenizer.eosTokenId].every((id) => id < tokenizer.vocabularySize);
  return known && typeof tokenizer.decode(ids) === 'string';
}

test('a spoiled tokenizer.json is refused as the caller’s, or gives a tokenizer that works', async () => {
  const original = JSON.parse(JSON.stringify(tinyTokenizerJson())) as Json;
  await fc.assert(
    fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 3 }), async (mutations) => {
      const spoiled = mutations.reduce((value, { path, how, by }) => spoil(value, path, how, by), original);
      await writeFile(join(dir, 'tokenizer.json'), JSON.stringify(spoiled));
      expect(await isHandled()).toBe(true);
    }),
    { seed, numRuns: 150 },
  );
  await writeFile(join(dir, 'tokenizer.json'), JSON.stringify(original));
});

test('a prefix of continuing pieces, which would end the process, is refused', async () => {
  const original = tinyTokenizerJson();
  const model = { ...(original['model'] as Record<string, Json>), continuing_subword_prefix: '</think>' };
  await writeFile(join(dir, 'tokenizer.json'), JSON.stringify({ ...original, model }));
  await expect(loadTokenizer(dir)).rejects.toThrow(/continuing_subword_prefix is not empty/);
  await writeFile(join(dir, 'tokenizer.json'), JSON.stringify(original));
});

test('bytes changed, cut or added in tokenizer.json are refused, or harmless', async () => {
  const original = Buffer.from(JSON.stringify(tinyTokenizerJson()));
  await fc.assert(
    fc.asyncProperty(fc.nat(original.length - 1), fc.nat(255), fc.boolean(), async (at, byte, cut) => {
      const spoiled = Buffer.from(original);
      spoiled[at] = byte;
      await writeFile(join(dir, 'tokenizer.json'), cut ? spoiled.subarray(0, at) : spoiled);
      expect(await isHandled()).toBe(true);
    }),
    { seed, numRuns: 100 },
  );
  await writeFile(join(dir, 'tokenizer.json'), original);
});

test('a spoiled tokenizer_config.json is refused as the caller’s, or harmless', async () => {
  const roles: Json = {
    add_bos_token: false,
    bos_token: { content: '<|endoftext|>' },
    eos_token: '<|im_end|>',
    chat_template: [{ name: 'default', template: '{{ messages[0].content }}' }],
  };
  await fc.assert(
    fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 2 }), async (mutations) => {
      const spoiled = mutations.reduce<Json>((value, { path, how, by }) => spoil(value, path, how, by), roles);
      await writeFile(join(dir, 'tokenizer_config.json'), JSON.stringify(spoiled));
      expect(await isHandled()).toBe(true);
    }),
    { seed, numRuns: 80 },
  );
});

const template = `{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content | trim }}
{%- if message.content is string and 'x' in message.content %}{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% else %}{{ raise_exception('no') }}{% endif %}`;

test('a spoiled chat template renders a text or fails as the caller’s, and never with anything else', () => {
  const pieces = fc.constantFrom(
    '{{',
    '}}',
    '{%',
    '%}',
    '{#',
    '|',
    '.',
    '(',
    ')',
    "'",
    'for',
    'endfor',
    'in',
    'is',
    '-',
    '*',
    '~',
    '0',
    'loop',
    '[',
    ']',
  );
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(template.length), fc.nat(6), fc.oneof(pieces, fc.string({ maxLength: 3 }))), {
        minLength: 1,
        maxLength: 3,
      }),
      (edits) => {
        let source = template;
        for (const [at, length, text] of edits) source = source.slice(0, at) + text + source.slice(at + length);
        try {
          const render = compileJinja(source);
          expect(typeof render({ messages: [{ role: 'user', content: 'x' }], add_generation_prompt: true })).toBe(
            'string',
          );
        } catch (error) {
          expect(error).toBeInstanceOf(Failure);
          expect((error as Failure).code).toBe('invalid_argument');
        }
      },
    ),
    { seed, numRuns: 300 },
  );
});
