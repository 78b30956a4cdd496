import type { GenerateStep } from '@medmesh/engine';
import { inference } from '@medmesh/proto';
import type { Prepared } from './prepare-request.ts';
import { engineSampling } from './resolve-sampling.ts';
import { createTextAssembler } from './text-assembler.ts';

const { ANSWER, REASONING } = inference.Channel;
const Reason = inference.FinishReason;

export type ChoiceOptions = {
  choice: number;
  logprobs: number | undefined;
  reasoning: inference.Reasoning | undefined;
  queuedMs: number;
};

const milliseconds = (ms: number) => ({ seconds: Math.floor(ms / 1000), nanos: Math.round((ms % 1000) * 1e6) });

/** Share of max_tokens that is kept for the answer when the model reasons and the request says nothing. */
const answerShare = 0.25;

/** Tokens of reasoning before it is closed, so that an answer always has room. Undefined: no limit of its own. */
export function reasoningBudget(
  reasoning: inference.Reasoning | undefined,
  maxTokens: number,
  startsInsideThink: boolean,
): number | undefined {
  if (!startsInsideThink) return undefined;
  const reserve = reasoning?.answerReserveTokens || Math.ceil(maxTokens * answerShare);
  const room = Math.max(0, maxTokens - reserve);
  return Math.min(room, reasoning?.maxTokens || room);
}

/** A token's log-probability as the API carries it. */
const tokenLogprob = (step: GenerateStep): inference.TokenLogprob => ({
  tokenId: step.tokenId,
  logprob: step.logprob,
  top: step.topLogprobs ?? [],
});

/**
 * Makes one answer. If the reasoning uses up its budget, `</think>` is put in its place and the answer follows: a truncated thought is never
 * returned as the answer.
 */
export async function* generateChoice(
  prepared: Prepared,
  options: ChoiceOptions,
  signal: AbortSignal,
): AsyncGenerator<inference.GenerateEvent> {
  const { base, adapter, started, stopTokenIds } = prepared;
  const sampling = started.sampling ?? inference.Sampling.fromPartial({});
  const maxTokens = sampling.maxTokens ?? 0;
  const inline = options.reasoning?.return === inference.Reasoning_Return.INLINE;
  const drop = options.reasoning?.return === inference.Reasoning_Return.DROP;
  const assembler = createTextAssembler(base.tokenizer, started.startsInsideThink, sampling.stop, inline);
  const begin = performance.now();
  let firstTokenMs: number | undefined;
  let reasoningTokens = 0;
  let answerTokens = 0;
  let matchedStop = '';
  let reason: inference.FinishReason | undefined;
  const made: number[] = [];

  const delta = (
    pieces: readonly { channel: 'reasoning' | 'answer'; text: string }[],
    step: GenerateStep | undefined,
  ): inference.GenerateEvent[] => {
    const channelOf = (channel: 'reasoning' | 'answer') => (channel === 'reasoning' ? REASONING : ANSWER);
    const kept = pieces.filter((piece) => !(drop && piece.channel === 'reasoning'));
    // Ids and log-probabilities travel with the first piece of their token; a token that ends no piece goes with an empty one if they are wanted.
    const ids = step === undefined ? [] : [step.tokenId];
    const logprobs = step === undefined || options.logprobs === undefined ? [] : [tokenLogprob(step)];
    const list = kept.length > 0 ? kept : [{ channel: assembler.channel, text: '' }];
    if (drop && list[0]?.channel === 'reasoning') return [];
    return list.map((piece, i) => ({
      event: {
        $case: 'delta',
        value: {
          choice: options.choice,
          channel: channelOf(piece.channel),
          text: piece.text,
          tokenIds: i === 0 ? ids : [],
          logprobs: i === 0 ? logprobs : [],
        },
      },
    }));
  };

  async function* run(tokens: Uint32Array, limit: number): AsyncGenerator<inference.GenerateEvent, 'stop' | 'length'> {
    const stopStringFound = new AbortController();
    const within = AbortSignal.any([signal, stopStringFound.signal]);
    const steps = base.model.generate({
      tokens,
      ...(adapter === undefined ? {} : { adapter }),
      sampling: engineSampling(sampling, stopTokenIds, options.choice, limit, options.logprobs),
      signal: within,
    });
    for await (const step of steps) {
      firstTokenMs ??= performance.now() - begin;
      made.push(step.tokenId);
      if (assembler.channel === 'reasoning') reasoningTokens += 1;
      else answerTokens += 1;
      if (step.finish === 'stop') {
        reason = sampling.stopTokenIds.includes(step.tokenId) ? Reason.STOP_TOKEN : Reason.EOS;
        yield* delta([], step);
        return 'stop';
      }
      const { pieces, matchedStop: matched } = assembler.push(step.tokenId);
      yield* delta(pieces, step);
      if (matched !== undefined) {
        matchedStop = matched;
        reason = Reason.STOP_STRING;
        // Leaving the loop ends the generation in the engine.
        stopStringFound.abort();
        return 'stop';
      }
      if (step.finish === 'length') return 'length';
    }
    return 'length';
  }

  const budget = inline ? undefined : reasoningBudget(options.reasoning, maxTokens, started.startsInsideThink);
  // A budget of zero tokens leaves nothing to generate before the thought is closed.
  let end: 'stop' | 'length' = 'length';
  if (budget !== 0) end = yield* run(prepared.tokens, budget ?? maxTokens);
  if (end === 'length' && budget !== undefined && made.length < maxTokens) {
    const cut = assembler.channel === 'reasoning';
    const closing = cut ? await base.tokenizer.encode('\n</think>\n', { parseSpecialTokens: true }) : new Uint32Array();
    if (cut) for (const id of closing) yield* delta(assembler.push(id).pieces, undefined);
    const room = base.model.info.contextLength - prepared.tokens.length - made.length - closing.length;
    const limit = Math.min(maxTokens - made.length, room);
    if (limit > 0) end = yield* run(Uint32Array.from([...prepared.tokens, ...made, ...closing]), limit);
  }
  reason ??= assembler.channel === 'reasoning' ? Reason.REASONING_BUDGET : Reason.LENGTH;
  const rest = assembler.flush();
  if (rest.length > 0) yield* delta(rest, undefined);
  const total = performance.now() - begin;
  const finished: inference.Finished = {
    choice: options.choice,
    reason,
    matchedStop,
    usage: {
      promptTokenCount: started.promptTokenCount,
      cachedTokenCount: started.cachedTokenCount,
      reasoningTokenCount: reasoningTokens,
      answerTokenCount: answerTokens,
    },
    timing: {
      queue: milliseconds(options.queuedMs),
      prefill: milliseconds(firstTokenMs ?? total),
      decode: milliseconds(total - (firstTokenMs ?? total)),
    },
  };
  yield { event: { $case: 'finished', value: finished } };
}
