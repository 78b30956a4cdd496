import { randomUUID } from 'node:crypto';
import { Failure } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import { attribute, errorType, failSpan, startSpan } from '@medmesh/telemetry';
import { context } from '@opentelemetry/api';
import type { Admission } from './admission.ts';
import { type ChoiceOptions, type Emit, gatherMsOf, generateChoice } from './generate-choice.ts';
import type { PrefixSource } from './prefix-scope.ts';
import { type PrepareDeps, type Prepared, prepareRequest } from './prepare-request.ts';
import { readBehind } from './read-behind.ts';
import type { ServingMetrics } from './serving-metrics.ts';

export type GenerateDeps = PrepareDeps & {
  admission: Admission;
  /** Running requests by tenant and id, for Cancel. */
  running: Map<string, AbortController>;
  onTokens: (count: number) => void;
  metrics: ServingMetrics;
  /** Of one answer, how much may wait for its reader. */
  maxUnreadBytes: number;
  /** Undefined where nothing of a request may outlive it. */
  prefixScope: ((source: PrefixSource) => Uint8Array) | undefined;
};

/** A request's key among those that run: tenants do not share ids, so none can cancel or probe another's. */
export const runningKey = (tenant: string, requestId: string): string => JSON.stringify([tenant, requestId]);

export const priorityNames = ['interactive', 'batch', 'evaluation'] as const;

/** 0 is the most urgent. */
export const priorityOf = ({ priority }: { priority: inference.Priority }): number =>
  priority === inference.Priority.BATCH ? 1 : priority === inference.Priority.EVALUATION ? 2 : 0;

/** How tokens are chosen, as span attributes; stop strings are a caller's text and stay out. */
const samplingAttributes = (sampling: inference.Sampling | undefined) => ({
  [attribute.genAiRequestTemperature]: sampling?.temperature ?? 0,
  [attribute.genAiRequestTopP]: sampling?.topP ?? 1,
  [attribute.genAiRequestTopK]: sampling?.topK ?? 0,
  [attribute.genAiRequestMaxTokens]: sampling?.maxTokens ?? 0,
  [attribute.genAiRequestSeed]: sampling?.seed ?? 0,
  [attribute.genAiRequestChoiceCount]: sampling?.n ?? 1,
});

/** The events of a prepared request: one `started`, deltas, one `finished` for each choice. */
async function answer(
  prepared: Prepared,
  request: inference.GenerateRequest,
  more: Pick<ChoiceOptions, 'queuedMs' | 'prefixScope' | 'gatherMs'>,
  signal: AbortSignal,
  emit: Emit,
): Promise<void> {
  emit({ event: { $case: 'started', value: prepared.started } });
  const wanted = request.logprobs;
  const logprobs = wanted !== undefined && (wanted.chosen || wanted.top > 0) ? wanted.top : undefined;
  const count = prepared.started.sampling?.n ?? 1;
  const priority = priorityNames[priorityOf(request)] ?? 'interactive';
  const options = { ...more, logprobs, reasoning: request.reasoning, priority };
  if (count === 1) {
    await generateChoice(prepared, { ...options, choice: 0 }, signal, emit);
    return;
  }
  const promptRead = Promise.withResolvers<void>();
  const failed = new AbortController();
  const choice = (index: number, order: Partial<ChoiceOptions>) =>
    generateChoice(prepared, { ...options, ...order, choice: index }, AbortSignal.any([signal, failed.signal]), emit);
  // The prompt is read once: the other choices begin when the first has read it, or has ended without.
  const first = choice(0, { onFirstToken: () => promptRead.resolve() }).finally(() => promptRead.resolve());
  const others = Array.from({ length: count - 1 }, (_, i) => choice(i + 1, { after: promptRead.promise }));
  try {
    await Promise.all([first, ...others]);
  } catch (error) {
    // None goes on without the others, and none is left behind.
    failed.abort(error);
    await Promise.allSettled([first, ...others]);
    throw error;
  }
}

/** Makes an answer. Ending the call, Cancel, and a full queue's deadline all stop it at the next token. */
async function produce(
  deps: GenerateDeps,
  request: inference.GenerateRequest,
  tenant: string,
  callSignal: AbortSignal,
  emit: Emit,
): Promise<void> {
  const requestId = request.requestId || randomUUID();
  const key = runningKey(tenant, requestId);
  if (deps.running.has(key))
    throw new Failure('already_exists', `request ${requestId} is running`, { reason: 'REQUEST_ID_REUSED' });
  const cancel = new AbortController();
  deps.running.set(key, cancel);
  const signal = AbortSignal.any([callSignal, cancel.signal]);
  const received = performance.now();
  let place: Awaited<ReturnType<Admission['enter']>> | undefined;
  let prepared: Prepared | undefined;
  const { span, context: inside } = startSpan('inference.generate', {
    attributes: {
      [attribute.genAiOperationName]:
        request.input?.$case === 'chat' || request.input?.$case === 'template' ? 'chat' : 'text_completion',
      [attribute.genAiProviderName]: 'medmesh',
    },
  });
  try {
    deps.admission.check();
    prepared = await context.with(inside, () => prepareRequest(deps, request, requestId, signal));
    const { started, tokens: promptTokens } = prepared;
    place = await deps.admission.enter(request.maxQueueMs, signal, {
      promptTokens: promptTokens.length,
      priority: priorityOf(request),
    });
    const model = started.adapter || started.baseModel;
    const scope = deps.prefixScope?.({ tenant, ...started });
    let lastDelta: number | undefined;
    span.setAttributes({
      [attribute.genAiRequestModel]: model,
      [attribute.genAiResponseModel]: model,
      [attribute.genAiResponseId]: requestId,
      [attribute.genAiUsageInputTokens]: started.promptTokenCount,
      ...samplingAttributes(started.sampling),
      'medmesh.base.digest': started.baseDigest,
      'medmesh.adapter.digest': started.adapterDigest,
    });
    let tokens = 0;
    let reasoning = 0;
    let cached = 0;
    const reasons: string[] = [];
    const more = { queuedMs: place.queuedMs, prefixScope: scope, gatherMs: gatherMsOf(deps.admission.running) };
    await answer(prepared, request, more, signal, (event) => {
      if (event.event?.$case === 'delta') {
        if (tokens === 0) {
          const seconds = (performance.now() - received) / 1000;
          span.addEvent('first_token');
          span.setAttribute(attribute.genAiResponseTimeToFirstChunk, seconds);
          deps.metrics.firstToken(model, seconds);
        }
        tokens += event.event.value.tokenIds.length;
        const now = performance.now();
        deps.onTokens(event.event.value.tokenIds.length);
        deps.metrics.tokens(
          model,
          event.event.value.tokenIds.length,
          lastDelta === undefined ? undefined : (now - lastDelta) / 1000,
        );
        lastDelta = now;
      } else if (event.event?.$case === 'finished') {
        const reason = inference.finishReasonToJSON(event.event.value.reason).replace('FINISH_REASON_', '');
        reasons.push(reason);
        reasoning += event.event.value.usage?.reasoningTokenCount ?? 0;
        cached = event.event.value.usage?.cachedTokenCount ?? 0;
        deps.metrics.finished(model, reason, (performance.now() - received) / 1000, event.event.value);
      }
      emit(event);
    });
    span.setAttributes({
      [attribute.genAiUsageOutputTokens]: tokens,
      [attribute.genAiUsageReasoningTokens]: reasoning,
      [attribute.genAiUsageCachedTokens]: cached,
      [attribute.genAiResponseFinishReasons]: reasons,
    });
  } catch (error) {
    failSpan(span, errorType(error));
    if (cancel.signal.aborted && !callSignal.aborted)
      throw new Failure('cancelled', `request ${requestId} was cancelled`, { reason: 'CANCELLED' });
    throw error;
  } finally {
    span.end();
    prepared?.release();
    place?.leave();
    deps.running.delete(key);
  }
}

/** Streams an answer. A slow reader holds nothing but the text it has not read: the engine does not wait for it, and its place is free at the end. */
export function generate(
  deps: GenerateDeps,
  request: inference.GenerateRequest,
  tenant: string,
  callSignal: AbortSignal,
): AsyncGenerator<inference.GenerateEvent> {
  return readBehind(
    (emit, left) => produce(deps, request, tenant, AbortSignal.any([callSignal, left]), emit),
    deps.maxUnreadBytes,
  );
}

/** The same, collected. */
export async function complete(
  deps: GenerateDeps,
  request: inference.GenerateRequest,
  tenant: string,
  signal: AbortSignal,
): Promise<inference.GenerateResult> {
  const result = inference.GenerateResult.fromPartial({});
  const choiceAt = (index: number): inference.GenerateChoice =>
    (result.choices[index] ??= inference.GenerateChoice.fromPartial({}));
  await produce(deps, request, tenant, signal, ({ event }) => {
    if (event?.$case === 'started') result.started = event.value;
    else if (event?.$case === 'finished') choiceAt(event.value.choice).finished = event.value;
    else if (event?.$case === 'delta') {
      const choice = choiceAt(event.value.choice);
      if (event.value.channel === inference.Channel.REASONING) choice.reasoning += event.value.text;
      else choice.answer += event.value.text;
      choice.tokenIds.push(...event.value.tokenIds);
      choice.logprobs.push(...event.value.logprobs);
    }
  });
  return result;
}
