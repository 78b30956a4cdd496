import { toFailure } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import type { Client, Metadata } from '@medmesh/rpc';

/** A caller of the server, under a tenant of its own where `metadata` says so. */
export type SoakCaller = {
  inference: Client<inference.InferenceServiceDefinition>;
  metadata?: Metadata | undefined;
};

export type SoakModel = {
  base: string;
  adapters: readonly string[];
  vocabularySize: number;
  contextLength: number;
};

export type SoakDeps = {
  caller: SoakCaller;
  admin: Client<inference.InferenceAdminServiceDefinition>;
  model: SoakModel;
  /** Uniform in [0, 1). */
  random: () => number;
  sleep: (ms: number) => Promise<void>;
};

/** What the server did that its contract does not allow. */
export class Violation extends Error {}

const { INTERACTIVE, BATCH, EVALUATION } = inference.Priority;
const priorities = [INTERACTIVE, BATCH, EVALUATION];

const upTo = (random: () => number, most: number) => 1 + Math.floor(random() * Math.max(1, most));

/** A request of random ids, half of them beginning as others do, by the base or an adapter, greedy or sampled. */
function randomRequest({ model, random }: SoakDeps) {
  const adapter = random() < 0.5 ? (model.adapters[Math.floor(random() * model.adapters.length)] ?? '') : '';
  const shared = random() < 0.5 ? Math.floor(model.contextLength / 8) : 0;
  const begin = Array.from({ length: shared }, (_, i) => (i * 31) % model.vocabularySize);
  const own = Array.from({ length: upTo(random, model.contextLength / 4) }, () =>
    Math.floor(random() * model.vocabularySize),
  );
  return {
    requestId: crypto.randomUUID(),
    model: adapter === '' ? { base: model.base } : { adapter },
    input: { $case: 'tokens' as const, value: { ids: [...begin, ...own] } },
    sampling: {
      maxTokens: upTo(random, 64),
      ignoreEos: random() < 0.5,
      ...(random() < 0.5 ? {} : { temperature: 0.8, topP: 0.95 }),
    },
    priority: priorities[Math.floor(random() * priorities.length)] ?? INTERACTIVE,
  };
}

type Request = ReturnType<typeof randomRequest>;
type Events = AsyncIterable<inference.GenerateEvent>;

/** Reads a stream to its end and holds it to its contract: one `started`, then deltas, one `finished` for each choice, and nothing after it. */
async function readAll(events: Events, choices: number, onDelta: () => Promise<void> | void = () => {}): Promise<void> {
  let started = 0;
  const finished = new Set<number>();
  for await (const { event } of events) {
    if (event?.$case === 'started') started += 1;
    if (started !== 1) throw new Violation('a stream did not begin with one started event');
    if (event?.$case === 'finished') {
      if (finished.has(event.value.choice)) throw new Violation('a choice finished twice');
      finished.add(event.value.choice);
    } else if (event?.$case === 'delta') {
      if (finished.has(event.value.choice)) throw new Violation('a choice went on after it had finished');
      await onDelta();
    }
  }
  if (finished.size !== choices) throw new Violation(`${finished.size} of ${choices} choices finished`);
}

const metadataOf = ({ caller }: SoakDeps) => (caller.metadata === undefined ? {} : { metadata: caller.metadata });

async function whole(deps: SoakDeps): Promise<void> {
  const request = randomRequest(deps);
  await readAll(deps.caller.inference.generate(request, metadataOf(deps)), 1);
}

async function several(deps: SoakDeps): Promise<void> {
  const n = upTo(deps.random, 4);
  const request = randomRequest(deps);
  const sampling = { ...request.sampling, temperature: 0.9, n };
  const { choices } = await deps.caller.inference.complete(
    { ...request, sampling },
    { ...metadataOf(deps), retry: false },
  );
  if (choices.length !== n || choices.some(({ finished }) => finished === undefined))
    throw new Violation(`${choices.length} of ${n} choices were returned`);
}

/** Goes away in the middle, without a word. */
async function leave(deps: SoakDeps): Promise<void> {
  const request = longer(deps);
  let left = upTo(deps.random, 6);
  for await (const { event } of deps.caller.inference.generate(request, metadataOf(deps))) {
    if (event?.$case === 'delta') left -= 1;
    if (left === 0) return;
  }
}

const longer = (deps: SoakDeps): Request => {
  const request = randomRequest(deps);
  return { ...request, sampling: { ...request.sampling, maxTokens: deps.model.contextLength, ignoreEos: true } };
};

async function cancel(deps: SoakDeps): Promise<void> {
  const request = longer(deps);
  const afterMs = deps.random() * 300;
  const cancelling = deps
    .sleep(afterMs)
    .then(() => deps.caller.inference.cancel({ requestId: request.requestId }, { ...metadataOf(deps), retry: false }));
  try {
    await readAll(deps.caller.inference.generate(request, metadataOf(deps)), 1);
  } finally {
    await cancelling;
  }
}

async function deadline(deps: SoakDeps): Promise<void> {
  const deadlineMs = 5 + Math.floor(deps.random() * 400);
  await readAll(deps.caller.inference.generate(longer(deps), { ...metadataOf(deps), deadlineMs }), 1);
}

/** Stops reading for a while a stream that is larger than what may wait for its reader. */
async function slow(deps: SoakDeps): Promise<void> {
  const n = 8;
  const request = longer(deps);
  const events = deps.caller.inference.generate(
    { ...request, sampling: { ...request.sampling, temperature: 1, n }, logprobs: { chosen: true, top: 20 } },
    metadataOf(deps),
  );
  let paused = false;
  await readAll(events, n, async () => {
    if (paused) return;
    paused = true;
    await deps.sleep(300 + deps.random() * 2_000);
  });
}

async function score(deps: SoakDeps): Promise<void> {
  const { model, input } = randomRequest(deps);
  const continuations = Array.from({ length: upTo(deps.random, 8) }, () => ({
    ids: Array.from({ length: upTo(deps.random, 12) }, () => Math.floor(deps.random() * deps.model.vocabularySize)),
  }));
  const request = { model, prompt: input.value, continuations };
  const { scores } = await deps.caller.inference.score(request, { ...metadataOf(deps), retry: false });
  for (const [i, { logprobs }] of scores.entries())
    if (logprobs.length !== continuations[i]?.ids.length || logprobs.some((p) => !(p <= 0)))
      throw new Violation('a continuation was not scored token by token');
}

/** As many vectors as lists, each of numbers. */
async function embed(deps: SoakDeps): Promise<void> {
  const { model } = randomRequest(deps);
  const tokens = Array.from({ length: upTo(deps.random, 20) }, () => randomRequest(deps).input.value);
  const pooling = deps.random() < 0.5 ? inference.Pooling.MEAN : inference.Pooling.LAST;
  const request = { model, tokens, pooling, normalize: true };
  const { embeddings } = await deps.caller.inference.embed(request, { ...metadataOf(deps), retry: false });
  if (embeddings.length !== tokens.length) throw new Violation(`${embeddings.length} of ${tokens.length} vectors`);
  for (const { values } of embeddings)
    if (!(Math.abs(Math.hypot(...values) - 1) < 1e-3)) throw new Violation('a vector’s length is not 1');
}

/** The answer must be one of the choices, if it was finished at all. */
async function constrained(deps: SoakDeps): Promise<void> {
  const options = ['yes', 'no', 'unknown'];
  const request = randomRequest(deps);
  const { choices } = await deps.caller.inference.complete(
    { ...request, constraint: { rule: { $case: 'choices', value: { options } } } },
    { ...metadataOf(deps), retry: false },
  );
  const [choice] = choices;
  if (choice?.finished?.reason !== inference.FinishReason.LENGTH && !options.includes(choice?.answer ?? ''))
    throw new Violation('a constrained answer is none of its choices');
}

/** Loads an adapter or puts it out of memory, under those who use it. */
async function churn(deps: SoakDeps): Promise<void> {
  const { model, random, admin } = deps;
  const adapter = model.adapters[Math.floor(random() * model.adapters.length)];
  if (adapter === undefined) return;
  if (random() < 0.5) await Array.fromAsync(admin.loadAdapter({ adapter, pinned: false }));
  else await admin.unloadAdapter({ adapter }, { retry: false, deadlineMs: 60_000 });
}

type Kind = {
  name: string;
  /** How often, relative to the others. */
  weight: number;
  ask: (deps: SoakDeps) => Promise<void>;
  /** Statuses it may end with besides OK and a full queue. */
  may: readonly string[];
};

const kinds: readonly [Kind, ...Kind[]] = [
  { name: 'whole', weight: 8, ask: whole, may: [] },
  { name: 'several', weight: 2, ask: several, may: [] },
  { name: 'leave', weight: 4, ask: leave, may: [] },
  { name: 'cancel', weight: 4, ask: cancel, may: ['cancelled'] },
  { name: 'deadline', weight: 4, ask: deadline, may: ['deadline_exceeded'] },
  { name: 'slow', weight: 1, ask: slow, may: [] },
  { name: 'score', weight: 3, ask: score, may: [] },
  { name: 'embed', weight: 2, ask: embed, may: [] },
  { name: 'constrained', weight: 2, ask: constrained, may: [] },
  { name: 'churn', weight: 1, ask: churn, may: ['not_found'] },
];
/** Each as often as it weighs. */
const drawn = kinds.flatMap((kind) => Array.from({ length: kind.weight }, () => kind));

/** A full server and a slow reader's end are refusals, not faults. */
const refusals = ['QUEUE_FULL', 'QUEUE_TIMEOUT', 'SLOW_READER'];

/** Makes one random request. Returns its kind and the status it ended with, and what was wrong with that, if anything. */
export async function askAtRandom(deps: SoakDeps): Promise<{ kind: string; status: string; wrong?: string }> {
  const { name, ask, may } = drawn[Math.floor(deps.random() * drawn.length)] ?? kinds[0];
  try {
    await ask(deps);
    return { kind: name, status: 'ok' };
  } catch (error) {
    if (error instanceof Violation) return { kind: name, status: 'violation', wrong: error.message };
    const { code, reason, message } = toFailure(error);
    const expected = may.includes(code) || (code === 'resource_exhausted' && refusals.includes(reason));
    return {
      kind: name,
      status: expected ? reason || code : code,
      ...(expected ? {} : { wrong: `${code} ${message}` }),
    };
  }
}
