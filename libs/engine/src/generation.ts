import { adapterHandle } from './adapter-handles.ts';
import { call, cancelled } from './call.ts';
import { constraintHandle } from './constraint.ts';
import { EngineError, toEngineError } from './errors.ts';
import { type ModelHandle, type NativeStep, native } from './native.ts';
import type {
  ContinuationScore,
  Gather,
  GenerateOptions,
  GenerateStep,
  GeneratorInfo,
  GeneratorOptions,
  Sampling,
  ScoreContinuationOptions,
} from './types.ts';

/** Tokens that may wait for their reader; a reader that stays behind further loses the rest of its answer. */
const maxWaitingSteps = 16_384;

/** In the engine's order. */
const priorities = ['interactive', 'batch', 'evaluation'] as const;

const stepOf = ({ tokenId, logprob, cachedTokens, topLogprobs, finish }: NativeStep): GenerateStep => ({
  tokenId,
  logprob,
  cachedTokens,
  ...(topLogprobs.length > 0 && { topLogprobs }),
  ...(finish !== null && { finish }),
});

export const openGenerator = (model: ModelHandle, o: GeneratorOptions = {}): Promise<GeneratorInfo> =>
  call(undefined, () =>
    native.openGenerator(model, {
      maxRunning: o.maxRunning ?? 64,
      memoryBudget: o.memoryBudget === undefined || o.memoryBudget === 'auto' ? 0 : o.memoryBudget,
      sameForAnyBatch: o.sameForAnyBatch ?? null,
    }),
  );

/**
 * Steps as they come, several together where `gather` lets them wait for each other. Starts with the first `next`; leaving the loop early, an abort and
 * an error all stop the engine's work on the request.
 */
export async function* generateBatches(
  model: ModelHandle,
  o: GenerateOptions & { gather?: Gather | undefined },
): AsyncGenerator<GenerateStep[], void, void> {
  const { signal, gather } = o;
  if (signal?.aborted) throw cancelled();
  let waiting: GenerateStep[] = [];
  let ended = false;
  let failure: EngineError | undefined;
  let wake = () => {};
  /** The first step goes at once, and so does what has waited its time. */
  let isDue = true;
  let timer: NodeJS.Timeout | undefined;
  const ready = () => waiting.length > 0 && (isDue || ended || waiting.length >= (gather?.steps ?? 1));
  const onSteps = (steps: NativeStep[], isEnd: boolean, error: Error | null) => {
    for (const step of steps) waiting.push(stepOf(step));
    ended = isEnd;
    if (error) failure ??= toEngineError(error);
    if (waiting.length > maxWaitingSteps && !ended && failure === undefined) {
      failure = new EngineError('cancelled', `the answer is read too slowly: ${waiting.length} tokens wait`);
      native.cancelGeneration(model, request);
    }
    if (ended || failure || ready()) wake();
    else timer ??= setTimeout(onTime, gather?.ms ?? 0);
  };
  const onTime = () => {
    timer = undefined;
    isDue = true;
    wake();
  };
  const request = submit(model, o, onSteps);
  const onAbort = () => {
    native.cancelGeneration(model, request);
    wake();
  };
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    for (;;) {
      if (signal?.aborted) throw cancelled();
      if (ready() || (failure && waiting.length > 0)) {
        const batch = waiting;
        waiting = [];
        isDue = false;
        clearTimeout(timer);
        timer = undefined;
        yield batch;
      } else if (failure) {
        throw failure;
      } else if (ended) {
        return;
      } else {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    }
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
    if (!ended) native.cancelGeneration(model, request);
  }
}

/** The same, one step after the other. */
export async function* generate(model: ModelHandle, o: GenerateOptions): AsyncGenerator<GenerateStep, void, void> {
  for await (const batch of generateBatches(model, o)) {
    for (const step of batch) {
      if (o.signal?.aborted) throw cancelled();
      yield step;
    }
  }
}

/** What a request that scores gives for sampling: nothing is chosen. */
const noSampling: Sampling = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0n,
  maxTokens: 1,
  stopTokenIds: [],
};

/** An abort takes effect before the next step. */
export async function scoreContinuation(model: ModelHandle, o: ScoreContinuationOptions): Promise<ContinuationScore> {
  const { signal, prompt, continuation } = o;
  if (signal?.aborted) throw cancelled();
  if (prompt.length === 0 || continuation.length === 0)
    throw new EngineError('invalid', 'prompt and continuation need at least one token each');
  const logprobs = new Float32Array(continuation.length);
  let done = 0;
  let cachedTokens = 0;
  const ended = Promise.withResolvers<void>();
  const onSteps = (steps: NativeStep[], isEnd: boolean, error: Error | null) => {
    for (const step of steps) {
      if (done === 0) cachedTokens = step.cachedTokens;
      logprobs[done++] = step.logprob;
    }
    if (error) ended.reject(toEngineError(error));
    else if (isEnd) ended.resolve();
  };
  const tokens = new Uint32Array(prompt.length + continuation.length);
  tokens.set(prompt);
  tokens.set(continuation, prompt.length);
  const request = submit(
    model,
    { priority: 'evaluation', ...o, tokens, sampling: noSampling },
    onSteps,
    continuation.length,
  );
  const onAbort = () => native.cancelGeneration(model, request);
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    await ended.promise;
    return { logprobs, cachedTokens };
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}

function submit(
  model: ModelHandle,
  o: GenerateOptions,
  onSteps: Parameters<typeof native.generate>[5],
  scored = 0,
): number {
  const sampling = { ...o.sampling, logitBias: o.sampling.logitBias ?? [], logprobs: o.sampling.logprobs ?? 0 };
  try {
    const options = {
      generated: o.generated ?? 0,
      scored,
      constraint: constraintHandle(o.constraint),
      priority: priorities.indexOf(o.priority ?? 'interactive'),
      prefixScope: o.prefixScope ?? null,
    };
    return native.generate(model, o.tokens, adapterHandle(o.adapter), sampling, options, onSteps);
  } catch (error) {
    throw toEngineError(error);
  }
}
