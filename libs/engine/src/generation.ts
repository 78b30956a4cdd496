import { adapterHandle } from './adapter-handles.ts';
import { call, cancelled } from './call.ts';
import { constraintHandle } from './constraint.ts';
import { EngineError, toEngineError } from './errors.ts';
import { type ModelHandle, type NativeSteps, native, nativeFinishes } from './native.ts';
import type {
  ContinuationScore,
  EmbedOptions,
  GenerateOptions,
  GenerateStep,
  GeneratorInfo,
  GeneratorOptions,
  Model,
  Sampling,
  ScoreContinuationOptions,
} from './types.ts';

/** Tokens that may wait for their reader; a reader that stays behind further loses the rest of its answer. */
const maxWaitingSteps = 16_384;

/** In the engine's order. */
const priorities = ['interactive', 'batch', 'evaluation'] as const;

function stepsOf(numbers: NativeSteps, tops: { tokenId: number; logprob: number }[][] | null): GenerateStep[] {
  const steps: GenerateStep[] = [];
  for (let at = 0; at < numbers.length; at += 4) {
    const step: GenerateStep = {
      tokenId: numbers[at] ?? 0,
      logprob: numbers[at + 1] ?? 0,
      cachedTokens: numbers[at + 2] ?? 0,
    };
    const finish = nativeFinishes[numbers[at + 3] ?? 0];
    if (finish !== undefined) step.finish = finish;
    const top = tops?.[at / 4];
    if (top !== undefined && top.length > 0) step.topLogprobs = top;
    steps.push(step);
  }
  return steps;
}

export const openGenerator = (model: ModelHandle, o: GeneratorOptions = {}): Promise<GeneratorInfo> =>
  call(undefined, () =>
    native.openGenerator(model, {
      maxRunning: o.maxRunning ?? 64,
      memoryBudget: o.memoryBudget === undefined || o.memoryBudget === 'auto' ? 0 : o.memoryBudget,
      sameForAnyBatch: o.sameForAnyBatch ?? null,
      mostStepGrowth: o.mostStepGrowth ?? 1,
    }),
  );

type TakeSteps = Parameters<Model['generateEach']>[1];

/**
 * Gives `take` the steps as they come, several together where `gatherMs` lets them wait for each other. `take` returns true when it has enough; that, an
 * abort and an error all stop the engine's work on the request.
 */
export function generateEach(
  model: ModelHandle,
  o: GenerateOptions & { gatherMs?: number | undefined },
  take: TakeSteps,
): Promise<void> {
  const { signal } = o;
  return new Promise((resolve, reject) => {
    if (signal?.aborted) throw cancelled();
    let settled = false;
    /** Once; whatever comes from the engine afterwards is nobody's. */
    const settle = (end: () => void, isEnded: boolean) => {
      settled = true;
      signal?.removeEventListener('abort', onAbort);
      if (!isEnded) native.cancelGeneration(model, request);
      end();
    };
    const onSteps: OnSteps = (numbers, tops, isEnd, error) => {
      if (settled) return;
      try {
        const steps = stepsOf(numbers, tops);
        if (steps.length > 0 && take(steps) === true) settle(resolve, isEnd);
        else if (error) settle(() => reject(toEngineError(error)), true);
        else if (isEnd) settle(resolve, true);
      } catch (thrown) {
        settle(() => reject(thrown as Error), isEnd);
      }
    };
    const onAbort = () => settle(() => reject(cancelled()), false);
    const request = submit(model, o, onSteps, { gatherMs: o.gatherMs ?? 0 });
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}

/** The same for who reads at a pace of its own. Starts with the first `next`; leaving the loop early stops the engine's work too. */
export async function* generateBatches(
  model: ModelHandle,
  o: GenerateOptions & { gatherMs?: number | undefined },
): AsyncGenerator<GenerateStep[], void, void> {
  let waiting: GenerateStep[] = [];
  let ended = false;
  let failure: { error: unknown } | undefined;
  let wake = () => {};
  const left = new AbortController();
  const signal = o.signal === undefined ? left.signal : AbortSignal.any([o.signal, left.signal]);
  generateEach(model, { ...o, signal }, (steps) => {
    for (const step of steps) waiting.push(step);
    wake();
    if (waiting.length > maxWaitingSteps)
      throw new EngineError('cancelled', `the answer is read too slowly: ${waiting.length} tokens wait`);
    return false;
  })
    .catch((error: unknown) => {
      failure = { error };
    })
    .finally(() => {
      ended = true;
      wake();
    });
  try {
    for (;;) {
      if (o.signal?.aborted) throw cancelled();
      if (waiting.length > 0) {
        const batch = waiting;
        waiting = [];
        yield batch;
      } else if (failure) {
        throw failure.error;
      } else if (ended) {
        return;
      } else {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    }
  } finally {
    left.abort();
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
  const onSteps: OnSteps = (steps, _tops, isEnd, error) => {
    if (done === 0) cachedTokens = steps[2] ?? 0;
    for (let at = 0; at < steps.length; at += 4) logprobs[done++] = steps[at + 1] ?? 0;
    if (error) ended.reject(toEngineError(error));
    else if (isEnd) ended.resolve();
  };
  const tokens = new Uint32Array(prompt.length + continuation.length);
  tokens.set(prompt);
  tokens.set(continuation, prompt.length);
  const request = submit(model, { priority: 'evaluation', ...o, tokens, sampling: noSampling }, onSteps, {
    scored: continuation.length,
  });
  const onAbort = () => native.cancelGeneration(model, request);
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    await ended.promise;
    return { logprobs, cachedTokens };
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}

export async function embed(model: ModelHandle, o: EmbedOptions): Promise<Float32Array> {
  const { signal } = o;
  if (signal?.aborted) throw cancelled();
  const ended = Promise.withResolvers<Float32Array>();
  const priority = priorities.indexOf(o.priority ?? 'interactive');
  let request: number;
  try {
    request = native.embed(model, o.tokens, adapterHandle(o.adapter), o.pooling, priority, (vector, error) => {
      if (vector === null) ended.reject(toEngineError(error));
      else ended.resolve(vector);
    });
  } catch (error) {
    throw toEngineError(error);
  }
  const onAbort = () => native.cancelGeneration(model, request);
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    return await ended.promise;
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}

type OnSteps = Parameters<typeof native.generate>[5];

function submit(
  model: ModelHandle,
  o: GenerateOptions,
  onSteps: OnSteps,
  { scored = 0, gatherMs = 0 }: { scored?: number; gatherMs?: number },
): number {
  const sampling = { ...o.sampling, logitBias: o.sampling.logitBias ?? [], logprobs: o.sampling.logprobs ?? 0 };
  try {
    const options = {
      generated: o.generated ?? 0,
      scored,
      constraint: constraintHandle(o.constraint),
      priority: priorities.indexOf(o.priority ?? 'interactive'),
      prefixScope: o.prefixScope ?? null,
      gatherMs,
    };
    return native.generate(model, o.tokens, adapterHandle(o.adapter), sampling, options, onSteps);
  } catch (error) {
    throw toEngineError(error);
  }
}
