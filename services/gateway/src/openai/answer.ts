import { randomUUID } from 'node:crypto';
import { Failure } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import {
  addUsage,
  chatLogprobs,
  completionLogprobs,
  finishReason,
  receiptOf,
  type Usage,
  usageOf,
} from './responses.ts';

type Events = AsyncIterable<inference.GenerateEvent>;

/** What is the same in every object of one answer. */
type Head = { id: string; created: number; model: string };

const head = (prefix: string, model: string): Head => ({
  id: `${prefix}-${randomUUID()}`,
  created: Math.floor(Date.now() / 1000),
  model,
});

type Choice = {
  reasoning: string;
  answer: string;
  logprobs: inference.TokenLogprob[];
  finished: inference.Finished | undefined;
};

type Collected = { started: inference.Started | undefined; choices: Choice[] };

async function collect(events: Events): Promise<Collected> {
  const choices: Choice[] = [];
  let started: inference.Started | undefined;
  const at = (index: number): Choice => {
    choices[index] ??= { reasoning: '', answer: '', logprobs: [], finished: undefined };
    return choices[index];
  };
  for await (const { event } of events) {
    if (event?.$case === 'started') started = event.value;
    else if (event?.$case === 'finished') at(event.value.choice).finished = event.value;
    else if (event?.$case === 'delta') {
      const choice = at(event.value.choice);
      if (event.value.channel === inference.Channel.REASONING) choice.reasoning += event.value.text;
      else choice.answer += event.value.text;
      choice.logprobs.push(...event.value.logprobs);
    }
  }
  if (started === undefined || choices.length === 0 || choices.some(({ finished }) => finished === undefined))
    throw new Failure('unavailable', 'the stream ended before the answer did', { reason: 'STREAM_CUT' });
  return { started, choices };
}

const finishedOf = (choices: readonly Choice[]): inference.Finished[] =>
  choices.flatMap(({ finished }) => (finished === undefined ? [] : [finished]));
const reasonOf = ({ finished }: Choice) => finishReason(finished?.reason ?? inference.FinishReason.LENGTH);

/** A whole chat completion. */
export async function chatCompletion(events: Events, model: string, logprobs: boolean) {
  const { id, created } = head('chatcmpl', model);
  const { started, choices } = await collect(events);
  return {
    id,
    object: 'chat.completion',
    created,
    model,
    system_fingerprint: started?.baseDigest ?? null,
    choices: choices.map((choice, index) => ({
      index,
      message: {
        role: 'assistant',
        content: choice.answer,
        refusal: null,
        ...(choice.reasoning === '' ? {} : { reasoning_content: choice.reasoning }),
      },
      logprobs: logprobs ? chatLogprobs(choice.logprobs) : null,
      finish_reason: reasonOf(choice),
    })),
    usage: usageOf(finishedOf(choices)),
    medmesh: receiptOf(started),
  };
}

/** The chunks of a streamed chat completion. */
export async function* chatChunks(events: Events, model: string, logprobs: boolean, usage: boolean) {
  const { id, created } = head('chatcmpl', model);
  const finished: inference.Finished[] = [];
  const begun = new Set<number>();
  let fingerprint: string | null = null;
  const chunk = (choices: unknown[], more: object = {}) => ({
    id,
    object: 'chat.completion.chunk',
    created,
    model,
    system_fingerprint: fingerprint,
    choices,
    ...(usage ? { usage: null } : {}),
    ...more,
  });
  for await (const { event } of events) {
    if (event?.$case === 'started') {
      fingerprint = event.value.baseDigest;
      yield chunk([], { medmesh: receiptOf(event.value) });
    } else if (event?.$case === 'delta') {
      const { choice: index, channel, text, logprobs: list } = event.value;
      if (text === '' && (!logprobs || list.length === 0)) continue;
      const role = begun.has(index) ? {} : { role: 'assistant' };
      begun.add(index);
      const delta = channel === inference.Channel.REASONING ? { reasoning_content: text } : { content: text };
      yield chunk([
        { index, delta: { ...role, ...delta }, logprobs: logprobs ? chatLogprobs(list) : null, finish_reason: null },
      ]);
    } else if (event?.$case === 'finished') {
      finished.push(event.value);
      const reason = finishReason(event.value.reason);
      yield chunk([{ index: event.value.choice, delta: {}, logprobs: null, finish_reason: reason }]);
    }
  }
  if (usage) yield chunk([], { usage: usageOf(finished) });
}

/** A whole completion of one or several prompts. */
export async function textCompletion(prompts: readonly Events[], model: string, logprobs: boolean) {
  const { id, created } = head('cmpl', model);
  const answers = await Promise.all(prompts.map(collect));
  return {
    id,
    object: 'text_completion',
    created,
    model,
    system_fingerprint: answers[0]?.started?.baseDigest ?? null,
    choices: answers
      .flatMap(({ choices }) => choices)
      .map((choice, index) => ({
        index,
        text: choice.answer,
        logprobs: logprobs ? completionLogprobs(choice.logprobs, 0) : null,
        finish_reason: reasonOf(choice),
      })),
    usage: addUsage(answers.map(({ choices }) => usageOf(finishedOf(choices)))),
    medmesh: receiptOf(answers[0]?.started),
  };
}

/** The chunks of a streamed completion, prompt after prompt. `n`: answers of each. */
export async function* textChunks(
  prompts: readonly Events[],
  model: string,
  n: number,
  logprobs: boolean,
  usage: boolean,
) {
  const { id, created } = head('cmpl', model);
  const chunk = (choices: unknown[], more: object = {}) => ({
    id,
    object: 'text_completion',
    created,
    model,
    choices,
    ...(usage ? { usage: null } : {}),
    ...more,
  });
  const used: Usage[] = [];
  const offsets = new Map<number, number>();
  for (const [prompt, events] of prompts.entries()) {
    const finished: inference.Finished[] = [];
    for await (const { event } of events) {
      if (event?.$case === 'delta') {
        const index = prompt * n + event.value.choice;
        const { text, logprobs: list } = event.value;
        const offset = offsets.get(index) ?? 0;
        offsets.set(index, offset + text.length);
        if (text === '' && (!logprobs || list.length === 0)) continue;
        const shown = logprobs ? completionLogprobs(list, offset) : null;
        yield chunk([{ index, text, logprobs: shown, finish_reason: null }]);
      } else if (event?.$case === 'finished') {
        finished.push(event.value);
        const index = prompt * n + event.value.choice;
        yield chunk([{ index, text: '', logprobs: null, finish_reason: finishReason(event.value.reason) }]);
      }
    }
    used.push(usageOf(finished));
  }
  if (usage) yield chunk([], { usage: addUsage(used) });
}
