import { pathToFileURL } from 'node:url';
import { demoBaseDir } from '@medmesh/demo';
import { inference } from '@medmesh/proto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type MeshFixture, startMeshFixture } from './mesh-fixture.ts';

const Reason = inference.FinishReason;
const Mode = inference.Reasoning_Mode;
const question = 'A young man has pain moving to the right lower belly. Which condition is most likely?';

let fixture: MeshFixture;
let base: string;
beforeAll(async () => {
  fixture = await startMeshFixture({ roots: [demoBaseDir] });
  const source = await fixture.client.models.import({ modelId: 'demo', uri: pathToFileURL(demoBaseDir).href });
  base = (await fixture.client.models.quantize({ sourceModel: source.name, modelId: 'demo-nf4' })).name;
}, 120_000);
afterAll(() => fixture?.stop());

const answer = (options: Parameters<MeshFixture['client']['inference']['answer']>[1], input = { question }) =>
  fixture.client.inference.answer(input, { base, ...options });
const complete = (request: Parameters<typeof inference.GenerateRequest.fromPartial>[0]) =>
  fixture.client.raw.inference.complete({ model: { base }, ...request });

describe('sampling', () => {
  test('every value is resolved and told, and the same seed gives the same answer', async () => {
    const first = await answer({ sampling: { temperature: 0.9, maxTokens: 24 } });
    expect(first.started.sampling).toMatchObject({
      temperature: 0.9,
      topP: 1,
      topK: 0,
      minP: 0,
      repetitionPenalty: 1,
      presencePenalty: 0,
      frequencyPenalty: 0,
      maxTokens: 24,
      ignoreEos: false,
      n: 1,
    });
    expect(first.started.sampling?.seed).toBeGreaterThan(0);
    const again = await answer({ sampling: { ...first.started.sampling } });
    expect([again.reasoning, again.answer]).toEqual([first.reasoning, first.answer]);
  });

  test('several answers are each what their own seed gives alone', async () => {
    const input = { $case: 'text' as const, value: 'Pain in the belly' };
    const sampling = { temperature: 1, seed: 5, maxTokens: 16 };
    const together = await complete({ input, sampling: { ...sampling, n: 3 } });
    expect(together.choices).toHaveLength(3);
    for (const [i, choice] of together.choices.entries()) {
      const alone = await complete({ input, sampling: { ...sampling, seed: 5 + i } });
      expect(alone.choices[0]?.tokenIds).toEqual(choice.tokenIds);
    }
  });

  test('a stop string ends the answer before it, wherever tokens end', async () => {
    const input = { $case: 'text' as const, value: 'The patient' };
    const whole = (await complete({ input, sampling: { maxTokens: 48 } })).choices[0]!.answer;
    for (let at = 1; at + 9 < whole.length; at += 7) {
      const stop = whole.slice(at, at + 9);
      const cut = (await complete({ input, sampling: { maxTokens: 48, stop: [stop] } })).choices[0]!;
      expect(cut.answer).toBe(whole.slice(0, whole.indexOf(stop)));
      expect(cut.finished).toMatchObject({ reason: Reason.STOP_STRING, matchedStop: stop });
    }
  });

  test('log-probabilities of an answer are those that Score gives it', async () => {
    const prompt = [5, 6, 7, 8];
    const made = await complete({
      input: { $case: 'tokens', value: { ids: prompt } },
      sampling: { maxTokens: 12, temperature: 1, seed: 3, topK: 40 },
      logprobs: { chosen: true, top: 2 },
    });
    const [choice] = made.choices;
    const scored = await fixture.client.inference.score({
      model: { base },
      prompt: { ids: prompt },
      continuations: [{ ids: choice!.tokenIds }, { ids: choice!.tokenIds.slice(0, 3) }],
    });
    expect(choice!.logprobs).toHaveLength(choice!.tokenIds.length);
    for (const [i, logprob] of scored.scores[0]!.logprobs.entries()) {
      expect(choice!.logprobs[i]!.tokenId).toBe(choice!.tokenIds[i]);
      expect(choice!.logprobs[i]!.top).toHaveLength(2);
      expect(Math.abs(choice!.logprobs[i]!.logprob - logprob)).toBeLessThan(0.02);
    }
    expect(scored.scores[1]!.logprobs).toEqual(scored.scores[0]!.logprobs.slice(0, 3));
  });
});

describe('reasoning', () => {
  test.each([1, 2, 5, 9, 30])(
    'with %i tokens there is an answer, and the thought is not part of it',
    async (maxTokens) => {
      const made = await answer({ sampling: { maxTokens } });
      expect(made.started.startsInsideThink).toBe(true);
      expect(made.finished.reason).not.toBe(Reason.REASONING_BUDGET);
      expect(made.finished.usage!.answerTokenCount).toBeGreaterThan(0);
      expect(made.answer).not.toContain('</think>');
      expect(made.finished.usage!.reasoningTokenCount).toBeLessThanOrEqual(maxTokens - Math.ceil(maxTokens / 4));
    },
  );

  test('a budget of its own ends the thought, and the rest is for the answer', async () => {
    const made = await answer({ sampling: { maxTokens: 40, ignoreEos: true }, reasoning: { maxTokens: 7 } });
    expect(made.finished.usage).toMatchObject({ reasoningTokenCount: 7, answerTokenCount: 33 });
  });

  test('inline, the same tokens come as one text with the tags in it', async () => {
    const apart = await answer({ sampling: { maxTokens: 40 }, reasoning: { maxTokens: 9 } });
    const inline = await answer({
      sampling: { maxTokens: 40 },
      reasoning: { maxTokens: 9, return: inference.Reasoning_Return.INLINE },
    });
    expect(inline.reasoning).toBe('');
    const [thought, rest] = inline.answer.split('</think>');
    expect(thought!.trim()).toBe(apart.reasoning.trim());
    expect(rest!.trim()).toBe(apart.answer.trim());
  });
});

describe('a constraint', () => {
  const options = ['acute appendicitis', 'pneumonia', '肺炎'];

  test.each([Mode.ON, Mode.OFF])('of choices holds for the answer, with reasoning mode %i', async (mode) => {
    const made = await answer({
      sampling: { maxTokens: 60, temperature: 1, seed: 1 },
      reasoning: { mode, maxTokens: 12 },
      constraint: { $case: 'choices', value: { options } },
    });
    expect(options).toContain(made.answer);
    expect(made.finished.reason).toBe(Reason.CONSTRAINT);
    expect(made.finished.usage!.reasoningTokenCount > 0).toBe(mode === Mode.ON);
  });

  test('of a JSON schema gives JSON that is valid under it, for every choice and temperature', async () => {
    const schema = {
      type: 'object',
      properties: {
        condition: { type: 'string', minLength: 1, maxLength: 20 },
        certainty: { type: 'integer', minimum: 0, maximum: 100 },
        urgent: { type: 'boolean' },
        ward: { enum: ['A', 'B', null] },
      },
      required: ['condition', 'certainty', 'urgent', 'ward'],
      additionalProperties: false,
    };
    for (const temperature of [0.5, 1, 2]) {
      const made = await complete({
        input: { $case: 'template', value: { slots: { question } } },
        reasoning: { maxTokens: 5 },
        sampling: { maxTokens: 120, temperature, seed: 11, n: 3 },
        constraint: { rule: { $case: 'jsonSchema', value: JSON.stringify(schema) } },
      });
      for (const choice of made.choices) {
        expect(choice.finished?.reason).toBe(Reason.CONSTRAINT);
        const value = JSON.parse(choice.answer) as Record<string, unknown>;
        expect(Object.keys(value)).toEqual(['condition', 'certainty', 'urgent', 'ward']);
        expect(Array.from(String(value['condition'])).length).toBeLessThanOrEqual(20);
        expect(value['certainty']).toSatisfy((n: number) => Number.isInteger(n) && n >= 0 && n <= 100);
        expect(value['urgent']).toBeTypeOf('boolean');
        expect(['A', 'B', null]).toContain(value['ward']);
      }
    }
  });

  test('of a regular expression holds for text without a template, and may end with the model', async () => {
    const made = await complete({
      input: { $case: 'text', value: 'Call the ward: ' },
      sampling: { maxTokens: 60, temperature: 1, seed: 2 },
      constraint: { rule: { $case: 'regex', value: '0\\d{2,4}/\\d{4,8}( ext\\. \\d)?' } },
    });
    expect(made.choices[0]!.answer).toMatch(/^0\d{2,4}\/\d{4,8}( ext\. \d)?$/);
  });

  test('that is hostile or malformed is refused before anything runs', async () => {
    for (const rule of [
      { $case: 'regex' as const, value: '(a|b)*a(a|b){30}' },
      { $case: 'jsonSchema' as const, value: '{"type":' },
      { $case: 'choices' as const, value: { options: [] } },
    ]) {
      await expect(answer({ constraint: rule })).rejects.toMatchObject({
        code: 'invalid_argument',
        reason: 'CONSTRAINT_INVALID',
      });
    }
  });
});
