import type { ContinuationScore } from '@medmesh/engine';
import { Failure, invalidField } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import { attribute, withSpan } from '@medmesh/telemetry';
import { type GenerateDeps, priorityNames, priorityOf } from './generate.ts';
import { asNamedRequest } from './named-request.ts';
import { type Prepared, prepareRequest } from './prepare-request.ts';

const maxContinuations = 64;

export type ScoreDeps = Omit<GenerateDeps, 'onTokens' | 'metrics' | 'maxUnreadBytes'>;

function checkContinuations({ continuations }: inference.ScoreRequest, prompt: number, { base }: Prepared): void {
  const { vocabSize, contextLength } = base.model.info;
  for (const [i, { ids }] of continuations.entries()) {
    const field = `continuations[${i}].ids`;
    if (ids.length === 0) throw invalidField(field, 'is empty');
    const bad = ids.find((id) => id >= vocabSize);
    if (bad !== undefined) throw invalidField(field, `has ${bad}; the vocabulary has ${vocabSize}`);
    if (prompt + ids.length > contextLength) {
      throw new Failure(
        'invalid_argument',
        `prompt and continuation have ${prompt + ids.length} tokens; the model takes ${contextLength}`,
        { reason: 'CONTEXT_TOO_LONG', fields: [{ field, description: `has ${ids.length} tokens` }] },
      );
    }
  }
}

/** The first continuation reads the prompt; the others begin where it left the prompt in the cache, all at once. */
async function scoreAll(
  { base, adapter, tokens }: Prepared,
  continuations: readonly Uint32Array[],
  o: { priority: (typeof priorityNames)[number]; prefixScope: Uint8Array | undefined; signal: AbortSignal },
): Promise<ContinuationScore[]> {
  const one = (continuation: Uint32Array) =>
    base.model.scoreContinuation({ prompt: tokens, continuation, adapter, ...o });
  const [first, ...others] = continuations;
  if (first === undefined) return [];
  const begun = await one(first);
  // One that fails must not leave others behind that nobody waits for.
  const results = await Promise.allSettled(others.map(one));
  return [
    begun,
    ...results.map((result) => {
      if (result.status === 'rejected') throw result.reason;
      return result.value;
    }),
  ];
}

/**
 * Log-probabilities of each continuation's tokens, given the prompt. A request like any other: it waits for a place, runs in the engine's steps beside
 * what is generated, by default as an evaluation, and ends at its deadline or when Cancel names it.
 */
export async function score(
  deps: ScoreDeps,
  request: inference.ScoreRequest,
  tenant: string,
  callSignal: AbortSignal,
): Promise<inference.ScoreResponse> {
  const count = request.continuations.length;
  if (count === 0 || count > maxContinuations)
    throw invalidField('continuations', `has ${count}; give 1 to ${maxContinuations}`);
  const who = { requestId: request.requestId, tenant, signal: callSignal };
  const priority = request.priority === inference.Priority.UNSPECIFIED ? 2 : priorityOf(request);
  const prompt = inference.GenerateRequest.fromPartial({
    ...(request.model === undefined ? {} : { model: request.model }),
    input: { $case: 'tokens', value: { ids: request.prompt?.ids ?? [] } },
  });
  return await asNamedRequest(deps.running, who, (requestId, signal) => {
    deps.admission.check();
    const attributes = { [attribute.genAiResponseId]: requestId, 'medmesh.continuation.count': count };
    return withSpan('inference.score', { attributes }, async () => {
      const prepared = await prepareRequest(deps, prompt, requestId, signal);
      try {
        checkContinuations(request, prepared.tokens.length, prepared);
        const continuations = request.continuations.map(({ ids }) => Uint32Array.from(ids));
        const added = continuations.reduce((sum, { length }) => sum + length, 0);
        const place = await deps.admission.enter(request.maxQueueMs, signal, {
          promptTokens: prepared.tokens.length + added,
          priority,
        });
        try {
          const { started } = prepared;
          const prefixScope = deps.prefixScope?.({ tenant, ...started });
          const name = priorityNames[priority] ?? 'evaluation';
          const scores = await scoreAll(prepared, continuations, { priority: name, prefixScope, signal });
          const read = scores.reduce((sum, { cachedTokens }) => sum + prepared.tokens.length - cachedTokens, added);
          return {
            scores: scores.map(({ logprobs }) => ({
              logprobs: [...logprobs],
              sum: logprobs.reduce((sum, value) => sum + value, 0),
            })),
            baseDigest: started.baseDigest,
            adapterDigest: started.adapterDigest,
            readTokenCount: read,
          };
        } finally {
          place.leave();
        }
      } finally {
        prepared.release();
      }
    });
  });
}
