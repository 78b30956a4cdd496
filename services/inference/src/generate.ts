import { randomUUID } from 'node:crypto';
import { Failure } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import { attribute, errorType, failSpan, startSpan } from '@medmesh/telemetry';
import { context } from '@opentelemetry/api';
import type { Admission } from './admission.ts';
import { coalesce } from './coalesce.ts';
import { generateChoice } from './generate-choice.ts';
import { mergeStreams } from './merge-streams.ts';
import { type PrepareDeps, type Prepared, prepareRequest } from './prepare-request.ts';

export type GenerateDeps = PrepareDeps & {
  admission: Admission;
  /** Running requests by tenant and id, for Cancel. */
  running: Map<string, AbortController>;
  onTokens: (count: number) => void;
  onFirstToken: (seconds: number) => void;
};

/** A request's key among those that run: tenants do not share ids, so none can cancel or probe another's. */
export const runningKey = (tenant: string, requestId: string): string => JSON.stringify([tenant, requestId]);

type Events = AsyncGenerator<inference.GenerateEvent>;

/** The events of a prepared request: one `started`, deltas, one `finished` for each choice. */
async function* answer(
  prepared: Prepared,
  request: inference.GenerateRequest,
  queuedMs: number,
  signal: AbortSignal,
): Events {
  yield { event: { $case: 'started', value: prepared.started } };
  const wanted = request.logprobs;
  const logprobs = wanted !== undefined && (wanted.chosen || wanted.top > 0) ? wanted.top : undefined;
  const count = prepared.started.sampling?.n ?? 1;
  const choices = Array.from({ length: count }, (_, choice) =>
    generateChoice(prepared, { choice, logprobs, reasoning: request.reasoning, queuedMs }, signal),
  );
  yield* coalesce(count === 1 && choices[0] !== undefined ? choices[0] : mergeStreams(choices));
}

/** Streams an answer. Ending the call, Cancel, and a full queue's deadline all stop it at the next token. */
export async function* generate(
  deps: GenerateDeps,
  request: inference.GenerateRequest,
  tenant: string,
  callSignal: AbortSignal,
): Events {
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
    attributes: { [attribute.genAiOperationName]: 'text_completion' },
  });
  try {
    place = await deps.admission.enter(request.maxQueueMs, signal);
    prepared = await context.with(inside, () => prepareRequest(deps, request, requestId, signal));
    span.setAttributes({
      [attribute.genAiRequestModel]: prepared.started.adapter || prepared.started.baseModel,
      [attribute.genAiUsageInputTokens]: prepared.started.promptTokenCount,
      'medmesh.base.digest': prepared.started.baseDigest,
      'medmesh.adapter.digest': prepared.started.adapterDigest,
    });
    let tokens = 0;
    const reasons: string[] = [];
    for await (const event of answer(prepared, request, place.queuedMs, signal)) {
      if (event.event?.$case === 'delta') {
        if (tokens === 0) {
          const seconds = (performance.now() - received) / 1000;
          span.addEvent('first_token');
          span.setAttribute(attribute.genAiResponseTimeToFirstChunk, seconds);
          deps.onFirstToken(seconds);
        }
        tokens += event.event.value.tokenIds.length;
        deps.onTokens(event.event.value.tokenIds.length);
      } else if (event.event?.$case === 'finished') {
        reasons.push(inference.finishReasonToJSON(event.event.value.reason).replace('FINISH_REASON_', ''));
      }
      yield event;
    }
    span.setAttributes({ [attribute.genAiUsageOutputTokens]: tokens, [attribute.genAiResponseFinishReasons]: reasons });
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
  for await (const { event } of generate(deps, request, tenant, signal)) {
    if (event?.$case === 'started') result.started = event.value;
    else if (event?.$case === 'finished') choiceAt(event.value.choice).finished = event.value;
    else if (event?.$case === 'delta') {
      const choice = choiceAt(event.value.choice);
      if (event.value.channel === inference.Channel.REASONING) choice.reasoning += event.value.text;
      else choice.answer += event.value.text;
      choice.tokenIds.push(...event.value.tokenIds);
      choice.logprobs.push(...event.value.logprobs);
    }
  }
  return result;
}
