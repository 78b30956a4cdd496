import type { EmbedOptions, Adapter as EngineAdapter } from '@medmesh/engine';
import { Failure, invalidField } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import { attribute, withSpan } from '@medmesh/telemetry';
import type { Base } from './bases.ts';
import { type GenerateDeps, priorityNames, priorityOf } from './generate.ts';
import { asNamedRequest } from './named-request.ts';
import { acquireModel, checkTokenIds, encodePlainText } from './prepare-request.ts';

const maxTexts = 2048;
/** Of all vectors of a request: half of what a message may hold. */
const maxNumbers = 2 ** 21;
/** Texts of one request in the engine: the others of a large one wait here, where they are in nobody's way. */
const textsAtOnce = 16;

export type EmbedDeps = Pick<GenerateDeps, 'bases' | 'adapters' | 'admission' | 'running' | 'metrics'>;

/** The request's texts as tokens. Failure `invalid_argument` naming the one that is empty, too long, or no list of tokens. */
async function tokensOf({ texts, tokens }: inference.EmbedRequest, base: Base): Promise<Uint32Array[]> {
  const field = texts.length > 0 ? 'texts' : 'tokens';
  const count = texts.length + tokens.length;
  if (texts.length > 0 && tokens.length > 0) throw invalidField('tokens', 'is given beside texts; give one of the two');
  if (count === 0 || count > maxTexts) throw invalidField(field, `has ${count}; give 1 to ${maxTexts}`);
  const { hiddenSize, contextLength } = base.model.info;
  const room = Math.floor(maxNumbers / hiddenSize);
  if (count > room) throw invalidField(field, `has ${count}; vectors of ${hiddenSize} numbers leave room for ${room}`);
  const all: Uint32Array[] = [];
  for (const [i, text] of texts.entries()) all.push(await encodePlainText(text, base, `texts[${i}]`));
  for (const [i, { ids }] of tokens.entries()) {
    checkTokenIds(ids, base, `tokens[${i}].ids`);
    all.push(Uint32Array.from(ids));
  }
  for (const [i, { length }] of all.entries()) {
    if (length === 0) throw invalidField(`${field}[${i}]`, 'is empty');
    if (length > contextLength)
      throw new Failure('invalid_argument', `a text has ${length} tokens; ${base.record.name} takes ${contextLength}`, {
        reason: 'CONTEXT_TOO_LONG',
        fields: [{ field: `${field}[${i}]`, description: `has ${length} tokens` }],
      });
  }
  return all;
}

/** The vectors of all texts, several at a time. One that fails ends the others. */
async function embedAll(
  base: Base,
  texts: readonly Uint32Array[],
  o: Pick<EmbedOptions, 'pooling' | 'priority'> & { adapter: EngineAdapter | undefined; signal: AbortSignal },
): Promise<Float32Array[]> {
  const vectors: Float32Array[] = [];
  const failed = new AbortController();
  const signal = AbortSignal.any([o.signal, failed.signal]);
  let next = 0;
  const worker = async () => {
    for (let i = next++; i < texts.length; i = next++)
      vectors[i] = await base.model.embed({ ...o, tokens: texts[i] ?? new Uint32Array(), signal });
  };
  const workers = Array.from({ length: Math.min(textsAtOnce, texts.length) }, worker);
  try {
    await Promise.all(workers);
  } catch (error) {
    failed.abort();
    // None is left behind that nobody waits for.
    await Promise.allSettled(workers);
    throw error;
  }
  return vectors;
}

/** The vector at length 1; one of zeros stays as it is. */
function normalized(vector: Float32Array): Float32Array {
  const length = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
  return length === 0 ? vector : vector.map((value) => value / length);
}

/** Vectors of texts. A request like any other: it waits for a place, runs in the engine's steps beside what is generated, and ends when Cancel names it. */
export function embed(
  deps: EmbedDeps,
  request: inference.EmbedRequest,
  tenant: string,
  callSignal: AbortSignal,
): Promise<inference.EmbedResponse> {
  const who = { requestId: request.requestId, tenant, signal: callSignal };
  return asNamedRequest(deps.running, who, (requestId, signal) => {
    deps.admission.check();
    const attributes = {
      [attribute.genAiOperationName]: 'embeddings',
      [attribute.genAiProviderName]: 'medmesh',
      [attribute.genAiResponseId]: requestId,
    };
    return withSpan('inference.embed', { attributes }, async (span) => {
      const { base, adapter } = await acquireModel(deps, request.model);
      try {
        const texts = await tokensOf(request, base.value);
        const tokenCount = texts.reduce((sum, { length }) => sum + length, 0);
        const model = adapter?.value.record.name ?? base.value.record.name;
        span.setAttributes({
          [attribute.genAiRequestModel]: model,
          [attribute.genAiResponseModel]: model,
          [attribute.genAiUsageInputTokens]: tokenCount,
          'medmesh.text.count': texts.length,
        });
        const priority = priorityOf(request);
        const place = await deps.admission.enter(request.maxQueueMs, signal, { promptTokens: tokenCount, priority });
        try {
          const vectors = await embedAll(base.value, texts, {
            adapter: adapter?.value.engine,
            pooling: request.pooling === inference.Pooling.LAST ? 'last' : 'mean',
            priority: priorityNames[priority],
            signal,
          });
          deps.metrics.embedded(model, tokenCount);
          return {
            embeddings: vectors.map((vector, i) => ({
              values: [...(request.normalize ? normalized(vector) : vector)],
              tokenCount: texts[i]?.length ?? 0,
            })),
            baseDigest: base.value.record.digest,
            adapterDigest: adapter?.value.record.digest ?? '',
          };
        } finally {
          place.leave();
        }
      } finally {
        base.release();
        adapter?.release();
      }
    });
  });
}
