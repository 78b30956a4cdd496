import { inference } from '@medmesh/proto';

const Reason = inference.FinishReason;

export type Usage = {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
  completion_tokens_details: { reasoning_tokens: number };
};

export const finishReason = (reason: inference.FinishReason): 'stop' | 'length' =>
  reason === Reason.LENGTH || reason === Reason.REASONING_BUDGET ? 'length' : 'stop';

/** Tokens of a whole request: the prompt once, the answers added up. */
export function usageOf(finished: readonly inference.Finished[]): Usage {
  const sum = (read: (usage: inference.Usage) => number) =>
    finished.reduce((total, { usage }) => total + (usage === undefined ? 0 : read(usage)), 0);
  const prompt = finished[0]?.usage?.promptTokenCount ?? 0;
  const completion = sum((usage) => usage.reasoningTokenCount + usage.answerTokenCount);
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: finished[0]?.usage?.cachedTokenCount ?? 0 },
    completion_tokens_details: { reasoning_tokens: sum((usage) => usage.reasoningTokenCount) },
  };
}

export const addUsage = (all: readonly Usage[]): Usage =>
  all.reduce((a, b) => ({
    prompt_tokens: a.prompt_tokens + b.prompt_tokens,
    completion_tokens: a.completion_tokens + b.completion_tokens,
    total_tokens: a.total_tokens + b.total_tokens,
    prompt_tokens_details: {
      cached_tokens: a.prompt_tokens_details.cached_tokens + b.prompt_tokens_details.cached_tokens,
    },
    completion_tokens_details: {
      reasoning_tokens: a.completion_tokens_details.reasoning_tokens + b.completion_tokens_details.reasoning_tokens,
    },
  }));

const spelled = (bytes: Uint8Array) => ({ token: Buffer.from(bytes).toString('utf8'), bytes: [...bytes] });

/** Log-probabilities as chats carry them. */
export const chatLogprobs = (logprobs: readonly inference.TokenLogprob[]) => ({
  content: logprobs.map(({ tokenBytes, logprob, top }) => ({
    ...spelled(tokenBytes),
    logprob,
    top_logprobs: top.map((t) => ({ ...spelled(t.tokenBytes), logprob: t.logprob })),
  })),
  refusal: null,
});

/** Log-probabilities as completions carry them; `offset`: characters of the text before these tokens. */
export function completionLogprobs(logprobs: readonly inference.TokenLogprob[], offset: number) {
  let at = offset;
  const offsets = logprobs.map(({ tokenBytes }) => {
    const start = at;
    at += spelled(tokenBytes).token.length;
    return start;
  });
  return {
    tokens: logprobs.map(({ tokenBytes }) => spelled(tokenBytes).token),
    token_logprobs: logprobs.map(({ logprob }) => logprob),
    top_logprobs: logprobs.map(({ top }) =>
      Object.fromEntries(top.map((t) => [spelled(t.tokenBytes).token, t.logprob])),
    ),
    text_offset: offsets,
  };
}

/** What answered and how, beside OpenAI's own fields: the digests are the receipt of an answer. */
export const receiptOf = (started: inference.Started | undefined) => ({
  base: started?.baseModel ?? '',
  base_digest: started?.baseDigest ?? '',
  adapter: started?.adapter ?? '',
  adapter_digest: started?.adapterDigest ?? '',
  template_digest: started?.templateDigest ?? '',
  quantization: started?.quantization ?? '',
  sampling: started?.sampling === undefined ? undefined : inference.Sampling.toJSON(started.sampling),
});
