import { randomBytes } from 'node:crypto';
import type { Sampling as EngineSampling } from '@medmesh/engine';
import { Failure, type FieldViolation } from '@medmesh/errors';
import { inference } from '@medmesh/proto';

/** New tokens when a request says nothing. */
export const defaultMaxTokens = 512;

/** Sampling when a request says nothing: the likeliest token, no penalties. Nothing is taken from a model's generation_config. */
export const defaultSampling: inference.Sampling = inference.Sampling.fromPartial({
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  ignoreEos: false,
  n: 1,
});

type Range = readonly [field: string, value: number, low: number, high: number];

/** Every default written out; Failure `invalid_argument` with all faults. `room` is what the context leaves for new tokens. */
export function resolveSampling(
  asked: inference.Sampling | undefined,
  room: number,
  vocabularySize: number,
): inference.Sampling {
  const s = asked ?? inference.Sampling.fromPartial({});
  const resolved: inference.Sampling = {
    temperature: s.temperature ?? 0,
    topP: s.topP ?? 1,
    topK: s.topK ?? 0,
    minP: s.minP ?? 0,
    repetitionPenalty: s.repetitionPenalty ?? 1,
    presencePenalty: s.presencePenalty ?? 0,
    frequencyPenalty: s.frequencyPenalty ?? 0,
    seed: s.seed ?? randomBytes(6).readUIntBE(0, 6),
    maxTokens: Math.min(s.maxTokens ?? defaultMaxTokens, room),
    stop: s.stop,
    stopTokenIds: s.stopTokenIds,
    ignoreEos: s.ignoreEos ?? false,
    logitBias: s.logitBias,
    n: s.n ?? 1,
  };
  const ranges: Range[] = [
    ['temperature', resolved.temperature ?? 0, 0, 2],
    ['top_p', resolved.topP ?? 1, Number.MIN_VALUE, 1],
    ['top_k', resolved.topK ?? 0, 0, 2 ** 31 - 1],
    ['min_p', resolved.minP ?? 0, 0, 1],
    ['repetition_penalty', resolved.repetitionPenalty ?? 1, Number.MIN_VALUE, 100],
    ['presence_penalty', resolved.presencePenalty ?? 0, -2, 2],
    ['frequency_penalty', resolved.frequencyPenalty ?? 0, -2, 2],
    ['max_tokens', s.maxTokens ?? 1, 1, 2 ** 31 - 1],
    ['n', resolved.n ?? 1, 1, 16],
  ];
  const faults: FieldViolation[] = ranges
    .filter(([, value, low, high]) => !(value >= low && value <= high))
    .map(([field, value, low, high]) => ({
      field: `sampling.${field}`,
      description: `is ${value}; use ${low === Number.MIN_VALUE ? 'above 0' : low} to ${high}`,
    }));
  if ((resolved.n ?? 1) > 1 && resolved.temperature === 0) {
    faults.push({ field: 'sampling.n', description: 'is above 1 with temperature 0: all answers would be the same' });
  }
  for (const [id, bias] of Object.entries(resolved.logitBias)) {
    if (Number(id) >= vocabularySize)
      faults.push({
        field: 'sampling.logit_bias',
        description: `names token ${id}; the vocabulary has ${vocabularySize}`,
      });
    if (!(Math.abs(bias) <= 100))
      faults.push({ field: 'sampling.logit_bias', description: `is ${bias} for token ${id}; use -100 to 100` });
  }
  if (faults.length > 0) {
    throw new Failure('invalid_argument', faults.map((f) => `${f.field} ${f.description}`).join('; '), {
      reason: 'FIELD_INVALID',
      fields: faults,
    });
  }
  return resolved;
}

/** As the engine takes it. `choice` gives each of several answers its own stream of chance. */
export function engineSampling(
  s: inference.Sampling,
  stopTokenIds: readonly number[],
  choice: number,
  maxTokens: number,
  logprobs: number | undefined,
): EngineSampling {
  return {
    temperature: s.temperature ?? 0,
    topP: s.topP ?? 1,
    topK: s.topK ?? 0,
    minP: s.minP ?? 0,
    repetitionPenalty: s.repetitionPenalty ?? 1,
    presencePenalty: s.presencePenalty ?? 0,
    frequencyPenalty: s.frequencyPenalty ?? 0,
    seed: BigInt(s.seed ?? 0) + BigInt(choice),
    maxTokens,
    stopTokenIds: [...stopTokenIds],
    logitBias: Object.entries(s.logitBias).map(([tokenId, bias]) => ({ tokenId: Number(tokenId), bias })),
    ...(logprobs === undefined ? {} : { logprobs }),
  };
}
