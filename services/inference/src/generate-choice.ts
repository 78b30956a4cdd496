import type { Constraint, GenerateStep } from '@medmesh/engine';
import { inference } from '@medmesh/proto';
import type { TextTokenizer } from '@medmesh/text';
import { deltaOf } from './deltas.ts';
import type { Prepared } from './prepare-request.ts';
import { engineSampling } from './resolve-sampling.ts';
import { createTextAssembler, type Piece } from './text-assembler.ts';

const { ANSWER, REASONING } = inference.Channel;
const Reason = inference.FinishReason;

export type ChoiceOptions = {
  choice: number;
  logprobs: number | undefined;
  reasoning: inference.Reasoning | undefined;
  queuedMs: number;
  /** Where the engine may look for beginnings that it has read before. */
  prefixScope: Uint8Array | undefined;
  priority: 'interactive' | 'batch' | 'evaluation';
  gatherMs: number;
  /** Waited for before anything is generated. */
  after?: Promise<void>;
  onFirstToken?: () => void;
};

/**
 * Steps are taken together, for so short that nobody sees it: every step by itself would cost the process more than the rest of serving it. With many
 * answers at once, what a reader has to read at a time matters less than that one thread can send them all: from 20 to 64 they are 800 messages a second together.
 */
export const gatherMsOf = (running: number): number => Math.round(Math.min(80, Math.max(25, 1.25 * running)));

const milliseconds = (ms: number) => ({ seconds: Math.floor(ms / 1000), nanos: Math.round((ms % 1000) * 1e6) });

/** Share of max_tokens that is kept for the answer when the model reasons and the request says nothing. */
const answerShare = 0.25;

/** What closes a thought whose budget is used up. */
const closingText = '\n</think>\n';
const closings = new WeakMap<TextTokenizer, Promise<Uint32Array>>();

/** Its tokens, which no request changes. */
function closingOf(tokenizer: TextTokenizer): Promise<Uint32Array> {
  const known = closings.get(tokenizer);
  if (known !== undefined) return known;
  const closing = tokenizer.encode(closingText, { parseSpecialTokens: true });
  closings.set(tokenizer, closing);
  return closing;
}

/**
 * Tokens of reasoning before it is closed, so that an answer always has room. `room`: tokens that the context leaves; `closing`: tokens that close a
 * thought, which take of the context but not of `maxTokens`.
 */
export function reasoningBudget(
  reasoning: inference.Reasoning | undefined,
  maxTokens: number,
  room: number,
  closing: number,
): number {
  const reserve = reasoning?.answerReserveTokens || Math.ceil(maxTokens * answerShare);
  const most = Math.max(0, Math.min(maxTokens, room - closing) - reserve);
  return Math.min(most, reasoning?.maxTokens || most);
}

/** A token's log-probability as the API carries it. Ids that no token has (the model's table may be longer) have no bytes. */
function tokenLogprob(step: GenerateStep, tokenizer: TextTokenizer): inference.TokenLogprob {
  const bytesOf = (id: number) => Buffer.from(id < tokenizer.vocabularySize ? tokenizer.tokenBytes(id) : []);
  return {
    tokenId: step.tokenId,
    logprob: step.logprob,
    tokenBytes: bytesOf(step.tokenId),
    top: (step.topLogprobs ?? []).map((top) => ({ ...top, tokenBytes: bytesOf(top.tokenId) })),
  };
}

/** The part of the token that ended a thought before `rest` (leading line feeds of which may be missing) begins. */
const untilTagEnd = (text: string, rest: string): string => {
  const ends = [...text.matchAll(/>/g)].map(({ index }) => index + 1);
  return text.slice(0, ends.find((end) => text.slice(end).replace(/^\n+/, '') === rest) ?? text.length);
};

/**
 * Why a piece of generation ended. `done`: the choice is complete. `length`: its tokens are used up. `cut`: the thought must end here. `answer`: the
 * thought has ended, and a constraint holds from here on.
 */
type End = 'done' | 'length' | 'cut' | 'answer';

/** Takes what is made, as it is made. */
export type Emit = (event: inference.GenerateEvent) => void;

/**
 * Makes one answer. If the reasoning uses up its budget, or the model stops inside it, `</think>` is put in its place and the answer follows: a
 * truncated thought is never returned as the answer. A constraint holds for the answer alone.
 */
export async function generateChoice(
  prepared: Prepared,
  options: ChoiceOptions,
  signal: AbortSignal,
  emit: Emit,
): Promise<void> {
  const { base, adapter, started, stopTokenIds, constraint } = prepared;
  const { tokenizer } = base;
  const sampling = started.sampling ?? inference.Sampling.fromPartial({});
  const maxTokens = sampling.maxTokens ?? 0;
  const inline = options.reasoning?.return === inference.Reasoning_Return.INLINE;
  const drop = options.reasoning?.return === inference.Reasoning_Return.DROP;
  const newAssembler = (inside: boolean) => createTextAssembler(tokenizer, inside, sampling.stop, inline);
  let assembler = newAssembler(started.startsInsideThink);
  const closing = await closingOf(tokenizer);
  const room = base.model.info.contextLength - prepared.tokens.length;
  const budget = reasoningBudget(options.reasoning, maxTokens, room, closing.length);
  await options.after;
  const begin = performance.now();
  let firstTokenMs: number | undefined;
  let cachedTokens = 0;
  let reasoningTokens = 0;
  let answerTokens = 0;
  let matchedStop = '';
  let reason: inference.FinishReason | undefined;
  /** What follows the prompt: generated tokens and, where a thought was closed, those that close it. */
  const following: number[] = [];

  /** Adds to the last delta of `out`, or a new one where that is of the other channel. */
  function append(out: inference.GenerateEvent[], piece: Piece, step: GenerateStep | undefined): void {
    const channel = piece.channel === 'reasoning' && !inline ? REASONING : ANSWER;
    let delta = deltaOf(out.at(-1));
    if (delta?.channel !== channel) {
      delta = { choice: options.choice, channel, text: '', tokenIds: [], logprobs: [] };
      out.push({ event: { $case: 'delta', value: delta } });
    }
    delta.text += piece.text;
    if (step === undefined) return;
    delta.tokenIds.push(step.tokenId);
    if (options.logprobs !== undefined) delta.logprobs.push(tokenLogprob(step, tokenizer));
  }

  /** Ids and log-probabilities travel with the first piece of their token; a token that ends no piece goes with an empty one. */
  function send(out: inference.GenerateEvent[], pieces: readonly Piece[], step: GenerateStep | undefined): void {
    let rest = step;
    let sent = false;
    for (const piece of pieces) {
      if (drop && piece.channel === 'reasoning') continue;
      append(out, piece, rest);
      rest = undefined;
      sent = true;
    }
    if (!sent && !(drop && assembler.channel === 'reasoning'))
      append(out, { channel: assembler.channel, text: '' }, rest);
  }

  /** Sends pieces that are no step's. */
  function sendNow(pieces: readonly Piece[]): void {
    const out: inference.GenerateEvent[] = [];
    send(out, pieces, undefined);
    for (const event of out) emit(event);
  }

  /** The thought ended inside a token that holds text of an answer too: only what the constraint allows may be the answer. */
  const dropAnswerOf = async (tokenId: number, rest: string) => {
    const text = new TextDecoder().decode(tokenizer.tokenBytes(tokenId));
    following.pop();
    following.push(...(await tokenizer.encode(untilTagEnd(text, rest))));
    assembler = newAssembler(true);
    for (const id of closing) assembler.push(id);
  };

  /** The token that ended the thought and began an answer too. */
  let dropped: { tokenId: number; rest: string } | undefined;

  /** Takes one step; adds its events to `out` and says how the piece of generation ends with it, if it does. */
  function take(step: GenerateStep, out: inference.GenerateEvent[]): End | undefined {
    if (firstTokenMs === undefined) {
      firstTokenMs = performance.now() - begin;
      cachedTokens = Math.min(step.cachedTokens, prepared.tokens.length);
      options.onFirstToken?.();
    }
    const thought = assembler.channel === 'reasoning';
    if (thought) reasoningTokens += 1;
    else answerTokens += 1;
    if (step.finish === 'stop') {
      const asked = sampling.stopTokenIds.includes(step.tokenId);
      if (thought && !asked) return 'cut';
      reason = asked ? Reason.STOP_TOKEN : Reason.EOS;
      send(out, [], step);
      return 'done';
    }
    following.push(step.tokenId);
    const { pieces, matchedStop: matched } = assembler.push(step.tokenId);
    if (thought && assembler.channel === 'answer' && constraint !== undefined) {
      const rest = pieces.filter(({ channel }) => channel === 'answer');
      send(out, inline ? pieces : pieces.filter(({ channel }) => channel === 'reasoning'), step);
      if (!inline && rest.length > 0) dropped = { tokenId: step.tokenId, rest: rest.map(({ text }) => text).join('') };
      return 'answer';
    }
    send(out, pieces, step);
    if (matched !== undefined) {
      matchedStop = matched;
      reason = Reason.STOP_STRING;
      return 'done';
    }
    if (step.finish === 'complete') {
      reason = Reason.CONSTRAINT;
      return 'done';
    }
    if (step.finish === 'length') return 'length';
    return assembler.channel === 'reasoning' && reasoningTokens >= budget ? 'cut' : undefined;
  }

  async function run(limit: number, rule: Constraint | undefined): Promise<End> {
    const request = {
      tokens: Uint32Array.from([...prepared.tokens, ...following]),
      generated: following.length,
      priority: options.priority,
      ...(options.prefixScope === undefined ? {} : { prefixScope: options.prefixScope }),
      ...(adapter === undefined ? {} : { adapter }),
      sampling: engineSampling(sampling, stopTokenIds, options.choice, limit, options.logprobs),
      ...(rule === undefined ? {} : { constraint: rule }),
      gatherMs: options.gatherMs,
      signal,
    };
    let end: End | undefined;
    await base.model.generateEach(request, (steps) => {
      const out: inference.GenerateEvent[] = [];
      // Steps that came after an end are nobody's.
      for (const step of steps) if (end === undefined) end = take(step, out);
      for (const event of out) emit(event);
      return end !== undefined;
    });
    if (dropped !== undefined) await dropAnswerOf(dropped.tokenId, dropped.rest);
    dropped = undefined;
    return end ?? 'length';
  }

  const left = () => Math.min(maxTokens - reasoningTokens - answerTokens, room - following.length);
  let end: End = 'cut';
  if (!started.startsInsideThink) end = await run(maxTokens, constraint);
  // A budget of zero tokens leaves nothing to generate before the thought is closed.
  else if (budget > 0) end = await run(budget, undefined);
  // Closing tokens take of the context, not of max_tokens.
  const mayAnswer = reasoningTokens + answerTokens < maxTokens && following.length + closing.length < room;
  if (end !== 'done' && assembler.channel === 'reasoning' && mayAnswer) {
    for (const id of closing) sendNow(assembler.push(id).pieces);
    following.push(...closing);
  }
  if (end !== 'done' && left() > 0 && assembler.channel === 'answer') await run(left(), constraint);

  reason ??= assembler.channel === 'reasoning' ? Reason.REASONING_BUDGET : Reason.LENGTH;
  const rest = assembler.flush();
  if (rest.length > 0) sendNow(rest);
  const total = performance.now() - begin;
  const finished: inference.Finished = {
    choice: options.choice,
    reason,
    matchedStop,
    usage: {
      promptTokenCount: started.promptTokenCount,
      cachedTokenCount: cachedTokens,
      reasoningTokenCount: reasoningTokens,
      answerTokenCount: answerTokens,
    },
    timing: {
      queue: milliseconds(options.queuedMs),
      prefill: milliseconds(firstTokenMs ?? total),
      decode: milliseconds(total - (firstTokenMs ?? total)),
    },
  };
  emit({ event: { $case: 'finished', value: finished } });
}
