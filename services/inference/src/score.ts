import { Failure, invalidField } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import type { Admission } from './admission.ts';
import { type PrepareDeps, prepareRequest } from './prepare-request.ts';

const maxContinuations = 64;

/** Log-probabilities of each continuation's tokens, given the prompt. */
export async function score(
  deps: PrepareDeps & { admission: Admission },
  request: inference.ScoreRequest,
  signal: AbortSignal,
): Promise<inference.ScoreResponse> {
  const { continuations } = request;
  if (continuations.length === 0 || continuations.length > maxContinuations) {
    throw invalidField('continuations', `has ${continuations.length}; give 1 to ${maxContinuations}`);
  }
  const prompt = request.prompt?.ids ?? [];
  const generate = inference.GenerateRequest.fromPartial({
    ...(request.model === undefined ? {} : { model: request.model }),
    input: { $case: 'tokens', value: { ids: prompt } },
  });
  const place = await deps.admission.enter(0, signal);
  try {
    const prepared = await prepareRequest(deps, generate, '', signal);
    try {
      const { model } = prepared.base;
      const scores: inference.ContinuationScore[] = [];
      for (const [i, continuation] of continuations.entries()) {
        const tokens = Uint32Array.from([...prompt, ...continuation.ids]);
        const bad = continuation.ids.find((id) => id >= model.info.vocabSize);
        if (bad !== undefined)
          throw invalidField(`continuations[${i}].ids`, `has ${bad}; the vocabulary has ${model.info.vocabSize}`);
        if (continuation.ids.length === 0) throw invalidField(`continuations[${i}].ids`, 'is empty');
        if (tokens.length > model.info.contextLength) {
          throw new Failure(
            'invalid_argument',
            `prompt and continuation have ${tokens.length} tokens; the model takes ${model.info.contextLength}`,
            { reason: 'CONTEXT_TOO_LONG' },
          );
        }
        const all = await model.score({
          tokens,
          signal,
          ...(prepared.adapter === undefined ? {} : { adapter: prepared.adapter }),
        });
        const logprobs = [...all.subarray(prompt.length - 1)];
        scores.push({ logprobs, sum: logprobs.reduce((sum, value) => sum + value, 0) });
      }
      return { scores, baseDigest: prepared.started.baseDigest, adapterDigest: prepared.started.adapterDigest };
    } finally {
      prepared.release();
    }
  } finally {
    place.leave();
  }
}
