import type { Constraint, Adapter as EngineAdapter } from '@medmesh/engine';
import { Failure, invalidField } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import {
  encodeSegments,
  type ResolvedTemplate,
  resolveTemplate,
  type Slots,
  slotNames,
  type Turn,
} from '@medmesh/text';
import type { Adapters, LoadedAdapter } from './adapters.ts';
import { type Base, type Bases, quantizationName } from './bases.ts';
import type { Constraints } from './constraints.ts';
import type { Lease } from './resident.ts';
import { resolveSampling } from './resolve-sampling.ts';

/** A request with everything resolved: what will run, on what, and how. `release` lets go of base and adapter. */
export type Prepared = {
  base: Base;
  adapter: EngineAdapter | undefined;
  adapterTraceparent: string | undefined;
  tokens: Uint32Array;
  started: inference.Started;
  stopTokenIds: number[];
  /** Of the answer. When the prompt ends inside a thought, it also takes line feeds before the answer. */
  constraint: Constraint | undefined;
  release(): void;
};

export type PrepareDeps = { bases: Bases; adapters: Adapters; constraints: Constraints };

type Rendered = { tokens: Uint32Array; template: ResolvedTemplate | undefined; startsInsideThink: boolean };

const maxPromptCharacters = 4 * 2 ** 20;

/** Base and adapter of a request, in memory. Failure `failed_precondition` if they do not belong together. */
export async function acquireModel(
  deps: Pick<PrepareDeps, 'bases' | 'adapters'>,
  ref: inference.ModelRef | undefined,
): Promise<{ base: Lease<Base>; adapter: Lease<LoadedAdapter> | undefined }> {
  const adapterRef = ref?.adapter ?? '';
  if (adapterRef === '') {
    const record = await deps.bases.named(ref?.base ?? '', 'model.base');
    return { base: await deps.bases.acquire(record), adapter: undefined };
  }
  const record = await deps.adapters.resolve(adapterRef);
  const base = await deps.bases.resolve(ref?.base || record.baseDigest);
  if (base.digest !== record.baseDigest) {
    throw new Failure(
      'failed_precondition',
      `${record.name} was trained on base ${record.baseDigest}, not on ${base.digest}`,
      { reason: 'ADAPTER_BASE_MISMATCH' },
    );
  }
  const adapter = await deps.adapters.acquire(record);
  try {
    return { base: await deps.bases.acquire(base, adapter.value.description.base.quantization), adapter };
  } catch (error) {
    adapter.release();
    throw error;
  }
}

const reasoningMode = (mode: inference.Reasoning_Mode | undefined): 'auto' | 'on' | 'off' => {
  if (mode === inference.Reasoning_Mode.ON) return 'on';
  return mode === inference.Reasoning_Mode.OFF ? 'off' : 'auto';
};

function checkSlots(slots: Record<string, string>): Slots {
  for (const name of Object.keys(slots)) {
    if (!slotNames.some((known) => known === name))
      throw invalidField('template.slots', `has ${JSON.stringify(name)}; known are ${slotNames.join(', ')}`);
  }
  return slots;
}

function checkTurns(turns: readonly inference.ChatTurn[]): Turn[] {
  if (turns.length === 0) throw invalidField('chat.turns', 'is empty');
  return turns.map(({ role, content }, i) => {
    if (role !== 'system' && role !== 'user' && role !== 'assistant')
      throw invalidField(`chat.turns[${i}].role`, 'use system, user or assistant');
    return { role, content };
  });
}

/** Failure `invalid_argument` naming the first id that is no token of the base. */
export function checkTokenIds(ids: readonly number[], base: Base, field: string): void {
  const { vocabSize } = base.model.info;
  const bad = ids.find((id) => id >= vocabSize);
  if (bad !== undefined) throw invalidField(field, `has ${bad}; the vocabulary has ${vocabSize}`);
}

/** Text as it is: with the tokenizer's own beginning and end, and without special tokens being read in it. */
export function encodePlainText(text: string, { tokenizer }: Base, field: string): Promise<Uint32Array> {
  if (text.length > maxPromptCharacters)
    throw invalidField(field, `has ${text.length} characters; at most ${maxPromptCharacters}`);
  return tokenizer.encode(text, { addSpecialTokens: true });
}

/** The prompt as tokens. Users' text is plain: special-token text in it stays text. */
async function render(
  request: inference.GenerateRequest,
  base: Base,
  adapter: LoadedAdapter | undefined,
): Promise<Rendered> {
  const { input } = request;
  const { tokenizer } = base;
  if (input === undefined) throw invalidField('input', 'give one of template, chat, tokens or text');
  if (input.$case === 'tokens') {
    checkTokenIds(input.value.ids, base, 'tokens.ids');
    return { tokens: Uint32Array.from(input.value.ids), template: undefined, startsInsideThink: false };
  }
  if (input.$case === 'text') {
    const tokens = await encodePlainText(input.value, base, 'text');
    return { tokens, template: undefined, startsInsideThink: false };
  }
  let template: ResolvedTemplate;
  let prompt: Slots | Turn[];
  if (input.$case === 'chat') {
    prompt = checkTurns(input.value.turns);
    // The adapter's own template, whatever it is: another one would make prompts that it was never trained on.
    template = adapter?.template ?? resolveTemplate({ template: { $case: 'chat', value: { system: '' } } }, tokenizer);
  } else {
    const slots = checkSlots(input.value.slots);
    if (adapter !== undefined && input.value.builtin === '') template = adapter.template;
    else template = resolveTemplate({ template: { $case: 'builtin', value: input.value.builtin } }, tokenizer);
    const question = slots.question ?? slots.instruction;
    if (question === undefined || question === '')
      throw invalidField('template.slots', 'give `question`, or `instruction` and `input`');
    prompt = template.kind === 'chat' ? [{ role: 'user', content: question }] : slots;
  }
  const size = Array.isArray(prompt)
    ? prompt.reduce((sum, turn) => sum + turn.content.length, 0)
    : Object.values(prompt).reduce((sum, text) => sum + text.length, 0);
  if (size > maxPromptCharacters) throw invalidField('input', `has ${size} characters; at most ${maxPromptCharacters}`);
  const { segments, startsInsideThink } = template.renderPrompt(prompt, {
    reasoning: reasoningMode(request.reasoning?.mode),
  });
  const [encoded] = await encodeSegments(tokenizer, [segments]);
  return { tokens: encoded?.ids ?? new Uint32Array(), template, startsInsideThink };
}

/** Resolves model, prompt and sampling of a request. */
export async function prepareRequest(
  deps: PrepareDeps,
  request: inference.GenerateRequest,
  requestId: string,
  signal: AbortSignal,
): Promise<Prepared> {
  const top = request.logprobs?.top ?? 0;
  if (!(top >= 0 && top <= 20)) throw invalidField('logprobs.top', `is ${top}; use 0 to 20`);
  const { base: baseLease, adapter: adapterLease } = await acquireModel(deps, request.model);
  const release = () => {
    baseLease.release();
    adapterLease?.release();
  };
  try {
    const base = baseLease.value;
    const adapter = adapterLease?.value;
    const { tokens, template, startsInsideThink } = await render(request, base, adapter);
    const { contextLength, vocabSize } = base.model.info;
    if (tokens.length === 0) throw invalidField('input', 'is empty');
    if (tokens.length >= contextLength) {
      throw new Failure(
        'invalid_argument',
        `the prompt has ${tokens.length} tokens; ${base.record.name} takes ${contextLength} with the answer`,
        {
          reason: 'CONTEXT_TOO_LONG',
          fields: [{ field: 'input', description: `has ${tokens.length} tokens` }],
        },
      );
    }
    const sampling = resolveSampling(request.sampling, contextLength - tokens.length, vocabSize);
    const rule = request.constraint?.rule;
    const constraint =
      rule === undefined ? undefined : await deps.constraints.acquire(base, rule, startsInsideThink, signal);
    const eosIds = sampling.ignoreEos ? [] : (template?.stopTokenIds ?? base.tokenizer.stopTokenIds);
    return {
      base,
      adapter: adapter?.engine,
      adapterTraceparent: adapter?.record.traceparent,
      tokens,
      constraint,
      stopTokenIds: [...new Set([...eosIds, ...sampling.stopTokenIds])],
      started: {
        requestId,
        baseModel: base.record.name,
        baseDigest: base.record.digest,
        adapter: adapter?.record.name ?? '',
        adapterDigest: adapter?.record.digest ?? '',
        templateDigest: template?.digest ?? '',
        sampling,
        promptTokenCount: tokens.length,
        cachedTokenCount: 0,
        startsInsideThink,
        quantization: quantizationName(base.record.quantization),
      },
      release,
    };
  } catch (error) {
    release();
    throw error;
  }
}
