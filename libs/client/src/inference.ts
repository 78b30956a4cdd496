import { Failure } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import type { Client } from '@medmesh/rpc';

/** What is asked: a question for the trained template, a conversation, or plain text. */
export type AskInput =
  | { question: string }
  | { turns: { role: 'system' | 'user' | 'assistant'; content: string }[] }
  | { text: string }
  | { tokens: number[] };

export type AskOptions = {
  /** Base: name or digest. Default: the adapter's, else the server's only one. */
  base?: string;
  /** Adapter: name or digest. Default: none. */
  adapter?: string;
  sampling?: Parameters<typeof inference.Sampling.fromPartial>[0];
  reasoning?: Parameters<typeof inference.Reasoning.fromPartial>[0];
  /** What the answer must look like. */
  constraint?: inference.Constraint['rule'];
  signal?: AbortSignal;
};

/** One piece of an answer, or how it was started or ended. */
export type AskEvent =
  | { kind: 'started'; started: inference.Started }
  | { kind: 'reasoning' | 'answer'; text: string; choice: number }
  | { kind: 'finished'; finished: inference.Finished };

/** A whole answer. */
export type Answer = { reasoning: string; answer: string; started: inference.Started; finished: inference.Finished };

/** Answers from a base and its adapters. */
export type InferenceClient = {
  ask(input: AskInput, options?: AskOptions): AsyncGenerator<AskEvent>;
  /** Collects `ask`. */
  answer(input: AskInput, options?: AskOptions): Promise<Answer>;
  score(request: Parameters<typeof inference.ScoreRequest.fromPartial>[0]): Promise<inference.ScoreResponse>;
  /** Vectors of texts, or of tokens. */
  embed(
    request: Parameters<typeof inference.EmbedRequest.fromPartial>[0],
    options?: { signal?: AbortSignal },
  ): Promise<inference.EmbedResponse>;
  countTokens(input: AskInput, options?: AskOptions): Promise<inference.CountTokensResponse>;
};

type GenerateInput = Parameters<typeof inference.GenerateRequest.fromPartial>[0];

function toRequest(input: AskInput, options: AskOptions): GenerateInput {
  const body: GenerateInput['input'] =
    'question' in input
      ? { $case: 'template', value: { slots: { question: input.question } } }
      : 'turns' in input
        ? { $case: 'chat', value: { turns: input.turns } }
        : 'text' in input
          ? { $case: 'text', value: input.text }
          : { $case: 'tokens', value: { ids: input.tokens } };
  return {
    model: { base: options.base ?? '', adapter: options.adapter ?? '' },
    input: body,
    ...(options.sampling === undefined ? {} : { sampling: options.sampling }),
    ...(options.reasoning === undefined ? {} : { reasoning: options.reasoning }),
    ...(options.constraint === undefined ? {} : { constraint: { rule: options.constraint } }),
  };
}

export function createInferenceClient(service: Client<inference.InferenceServiceDefinition>): InferenceClient {
  async function* ask(input: AskInput, options: AskOptions = {}): AsyncGenerator<AskEvent> {
    const events = service.generate(
      toRequest(input, options),
      options.signal === undefined ? {} : { signal: options.signal },
    );
    for await (const { event } of events) {
      if (event?.$case === 'started') yield { kind: 'started', started: event.value };
      else if (event?.$case === 'finished') yield { kind: 'finished', finished: event.value };
      else if (event?.$case === 'delta') {
        const kind = event.value.channel === inference.Channel.REASONING ? 'reasoning' : 'answer';
        yield { kind, text: event.value.text, choice: event.value.choice };
      }
    }
  }

  return {
    ask,
    async answer(input, options) {
      let reasoning = '';
      let answer = '';
      let started: inference.Started | undefined;
      let finished: inference.Finished | undefined;
      for await (const event of ask(input, options)) {
        if (event.kind === 'started') started = event.started;
        else if (event.kind === 'finished') finished = event.finished;
        else if (event.kind === 'reasoning') reasoning += event.text;
        else answer += event.text;
      }
      if (started === undefined || finished === undefined)
        throw new Failure('unavailable', 'the stream ended before the answer did', { reason: 'STREAM_CUT' });
      return { reasoning, answer, started, finished };
    },
    score: (request) => service.score(request),
    embed: (request, options) => service.embed(request, options),
    countTokens: (input, options = {}) => service.countTokens({ request: toRequest(input, options) }),
  };
}
