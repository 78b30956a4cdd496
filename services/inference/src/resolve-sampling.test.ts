import { inference } from '@medmesh/proto';
import { expect, test } from 'vitest';
import { reasoningBudget } from './generate-choice.ts';
import { engineSampling, resolveSampling } from './resolve-sampling.ts';

const ask = (fields: Parameters<typeof inference.Sampling.fromPartial>[0]) =>
  resolveSampling(inference.Sampling.fromPartial(fields), 1000, 320);

test('nothing asked means the likeliest token, no penalties, and a seed that is told', () => {
  const resolved = resolveSampling(undefined, 1000, 320);
  expect(resolved).toMatchObject({
    temperature: 0,
    topP: 1,
    topK: 0,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    maxTokens: 512,
    n: 1,
  });
  expect(Number.isSafeInteger(resolved.seed)).toBe(true);
});

test('zero is a value, not an absence', () => {
  expect(ask({ topK: 0, temperature: 0, seed: 0 })).toMatchObject({ topK: 0, temperature: 0, seed: 0 });
});

test('max_tokens is cut to what the context leaves', () => {
  expect(resolveSampling(inference.Sampling.fromPartial({ maxTokens: 900 }), 100, 320).maxTokens).toBe(100);
});

test('every fault of a request is named at once', () => {
  expect(() => ask({ temperature: 3, topP: 0, topK: -1, minP: 2, n: 0, logitBias: { 400: 1 } })).toThrow(
    /temperature is 3.*top_p is 0.*top_k is -1.*min_p is 2.*n is 0.*token 400/,
  );
  expect(() => ask({ temperature: Number.NaN })).toThrow('temperature');
});

test('several greedy answers would be one answer', () => {
  expect(() => ask({ n: 2 })).toThrow('sampling.n');
  expect(ask({ n: 2, temperature: 1 }).n).toBe(2);
});

test('each of several answers has its own stream of chance', () => {
  const resolved = ask({ seed: 7, temperature: 1, n: 2 });
  expect([0, 1].map((choice) => engineSampling(resolved, [2], choice, 10, undefined).seed)).toEqual([7n, 8n]);
});

test('a reasoning model keeps room for its answer', () => {
  const R = inference.Reasoning;
  expect(reasoningBudget(undefined, 400, 1000, 3)).toBe(300);
  expect(reasoningBudget(R.fromPartial({ answerReserveTokens: 50 }), 400, 1000, 3)).toBe(350);
  expect(reasoningBudget(R.fromPartial({ maxTokens: 10 }), 400, 1000, 3)).toBe(10);
  expect(reasoningBudget(R.fromPartial({ answerReserveTokens: 500 }), 400, 1000, 3)).toBe(0);
});

test('what closes a thought is taken from the thought where the context is full, not from the answer', () => {
  const reserve = inference.Reasoning.fromPartial({ answerReserveTokens: 50 });
  expect(reasoningBudget(reserve, 400, 400, 3)).toBe(347);
  expect(reasoningBudget(reserve, 400, 402, 3)).toBe(349);
});
