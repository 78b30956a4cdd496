import { loadModel } from '@medmesh/engine';
import { inference, lifecycle } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { waitFor } from '@medmesh/testkit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type BaseFacts, contextLength, randomIds, vocabularySize, withWeightsOf } from './model-fixture.ts';
import {
  type InferenceWorld,
  openInferenceWorld,
  type RunningInference,
  type StoredAdapter,
} from './running-inference.ts';

const State = inference.LoadState;
const Reason = inference.FinishReason;

let world: InferenceWorld;
let server: RunningInference;
let base: BaseFacts;
let other: BaseFacts;
let first: StoredAdapter;
let second: StoredAdapter;

beforeAll(async () => {
  world = await openInferenceWorld();
  [base, other] = [await world.putBase('base', 1), await world.putBase('other', 2)];
  [first, second] = [await world.putAdapter('first', base, 11), await world.putAdapter('second', base, 12)];
  server = await world.start({ PRELOAD_BASES: base.name });
});
afterAll(() => world?.close());

const ids = [...randomIds(20, 3)];
const tokens = (list: readonly number[] = ids) => ({ $case: 'tokens' as const, value: { ids: [...list] } });
/** Asks with ids, greedily, past every end token; the base, unless an adapter or another base is named. */
const ask = (
  o: { base?: string; adapter?: string; maxTokens?: number; requestId?: string; prompt?: number[] } = {},
) => ({
  requestId: o.requestId ?? '',
  model: { base: o.base ?? (o.adapter === undefined ? base.name : ''), adapter: o.adapter ?? '' },
  input: tokens(o.prompt),
  sampling: { maxTokens: o.maxTokens ?? 12, ignoreEos: true },
});
/** Runs for seconds, on any machine: until it is cancelled. */
const lasting = () => ({ ...ask(), sampling: { maxTokens: 8000, ignoreEos: true, temperature: 1, n: 8 } });
const answerOf = async (o: Parameters<typeof ask>[0], on = server): Promise<number[]> =>
  (await on.answers.complete(ask(o))).choices[0]!.tokenIds;
const runningCount = async (on = server): Promise<number> => (await on.admin.getLoad({})).runningRequestCount;
const settled = (on = server) => waitFor(async () => (await runningCount(on)) === 0, { what: 'no request to run' });
const loadedNames = async (): Promise<string[]> =>
  (await server.admin.listLoadedAdapters({})).adapters.map((a) => a.adapter).sort();

describe('bases', () => {
  test('that are preloaded answer without being named', async () => {
    const info = await server.admin.getModelInfo({});
    expect(info).toMatchObject({
      baseModel: base.name,
      baseDigest: base.digest,
      tokenizerDigest: base.tokenizerDigest,
      quantization: 'none',
      contextLength,
      vocabularySize,
    });
    const { started, choices } = await server.answers.complete(ask({ base: '' }));
    expect(started).toMatchObject({ baseModel: base.name, adapter: '', promptTokenCount: 20 });
    expect(choices[0]).toMatchObject({ finished: { reason: Reason.LENGTH, usage: { answerTokenCount: 12 } } });
  });

  test('are loaded and unloaded on request, and then no one base is meant any more', async () => {
    const states = (await Array.fromAsync(server.admin.loadBase({ base: other.digest }))).map((s) => s.state);
    expect(states).toEqual([State.FETCHING, State.READY]);
    expect(await answerOf({ base: other.name })).not.toEqual(await answerOf({ base: base.name }));
    await expect(server.answers.complete(ask({ base: '' }))).rejects.toMatchObject({
      code: 'invalid_argument',
      fields: [{ field: 'model.base' }],
    });
    await server.admin.unloadBase({ base: other.name });
    await expect(server.admin.unloadBase({ base: other.name })).rejects.toMatchObject({ code: 'not_found' });
    await server.answers.complete(ask({ base: '' }));
  });

  test('that do not exist, or are no names, are said to be so', async () => {
    const askFor = (name: string) => server.answers.complete(ask({ base: name }));
    await expect(askFor('projects/p/models/none')).rejects.toMatchObject({ code: 'not_found' });
    await expect(askFor(`sha256:${'0'.repeat(64)}`)).rejects.toMatchObject({ code: 'not_found' });
    await expect(askFor('../x')).rejects.toMatchObject({ code: 'invalid_argument' });
  });
});

describe('adapters', () => {
  test('are probed before they are ready, and score as the trainer said', async () => {
    const states = await Array.fromAsync(server.admin.loadAdapter({ adapter: first.name, pinned: true }));
    expect(states.map((s) => s.state)).toEqual([
      State.RESOLVING,
      State.FETCHING,
      State.VALIDATING,
      State.PROBING,
      State.READY,
    ]);
    expect(states.at(-1)).toMatchObject({
      adapter: first.name,
      digest: first.digest,
      baseDigest: base.digest,
      rank: 4,
      pinned: true,
      parityTokenCount: 39,
      parityMaxDifference: expect.closeTo(0, 2),
      parityMeanDifference: expect.closeTo(0, 4),
    });
    expect(await loadedNames()).toContain(first.name);
  });

  test('are held by nobody when whoever loads them goes away in the middle', async () => {
    const left = await world.putAdapter('left', base, 13);
    for await (const { state } of server.admin.loadAdapter({ adapter: left.name, pinned: false }))
      if (state === State.FETCHING) break;
    await waitFor(async () => (await loadedNames()).includes(left.name));
    for await (const { state } of server.admin.loadAdapter({ adapter: left.name, pinned: false }))
      if (state === State.RESOLVING) break;
    expect(await server.admin.unloadAdapter({ adapter: left.name }, { deadlineMs: 5_000 })).toMatchObject({
      state: State.UNLOADED,
    });
  });

  test('two of one base answer at once, each as it does alone, and neither as the base', async () => {
    const alone = [
      await answerOf({}),
      await answerOf({ adapter: first.name }),
      await answerOf({ adapter: second.name }),
    ];
    expect(new Set(alone.map(String)).size).toBe(3);
    const together = await Promise.all(
      Array.from({ length: 12 }, (_, i) =>
        answerOf([{}, { adapter: first.name }, { adapter: second.digest }][i % 3] as { adapter?: string }),
      ),
    );
    for (const [i, answer] of together.entries()) expect(answer).toEqual(alone[i % 3]);
    expect(await loadedNames()).toEqual([first.name, second.name]);
  });

  test('whose weights are not the trained ones are refused by name, and never loaded', async () => {
    const tampered = await world.recordAdapter('tampered', base, {
      ...first,
      dir: withWeightsOf(first.dir, second.dir),
    });
    const refused = {
      code: 'failed_precondition',
      reason: 'PARITY_MISMATCH',
      message: expect.stringContaining(tampered.name),
    };
    await expect(server.answers.complete(ask({ adapter: tampered.name }))).rejects.toMatchObject(refused);
    await expect(
      Array.fromAsync(server.admin.loadAdapter({ adapter: tampered.name, pinned: false })),
    ).rejects.toMatchObject(refused);
    expect(await loadedNames()).not.toContain(tampered.name);
  });

  test('of another base, of another template, revoked or unknown are refused, each for its reason', async () => {
    await expect(answerOf({ base: other.name, adapter: first.name })).rejects.toMatchObject({
      code: 'failed_precondition',
      reason: 'ADAPTER_BASE_MISMATCH',
    });
    const moved = await world.recordAdapter('moved', other, first);
    await expect(answerOf({ adapter: moved.name })).rejects.toMatchObject({ reason: 'ADAPTER_BASE_MISMATCH' });
    const restyled = await world.recordAdapter('restyled', base, {
      ...first,
      templateDigest: `sha256:${'1'.repeat(64)}`,
    });
    await expect(answerOf({ adapter: restyled.name })).rejects.toMatchObject({ reason: 'TEMPLATE_MISMATCH' });
    const revoked = await world.recordAdapter('revoked', base, first);
    await world.catalog.adapters.modify(keyOf(revoked.name), (a) => ({ ...a, state: lifecycle.Adapter_State.REVOKED }));
    await expect(answerOf({ adapter: revoked.name })).rejects.toMatchObject({ reason: 'ADAPTER_REVOKED' });
    await expect(answerOf({ adapter: 'projects/p/adapters/none' })).rejects.toMatchObject({ code: 'not_found' });
    // What is wrong with a record is not held against the adapter whose files it names.
    await answerOf({ adapter: first.name });
  });

  test('are unloaded on request, and loaded again by the next question', async () => {
    expect(await server.admin.unloadAdapter({ adapter: second.name })).toMatchObject({ state: State.UNLOADED });
    expect(await loadedNames()).not.toContain(second.name);
    await expect(server.admin.unloadAdapter({ adapter: second.name })).rejects.toMatchObject({ code: 'not_found' });
    await answerOf({ adapter: second.name });
    expect(await loadedNames()).toContain(second.name);
  });
});

describe('a request', () => {
  const template = { $case: 'template' as const, value: { slots: { question: 'Where does it hurt?' }, builtin: '' } };

  test('streams what it would return whole', async () => {
    const request = { ...ask({ adapter: first.name }), input: template, sampling: { maxTokens: 40, ignoreEos: true } };
    const whole = await server.answers.complete(request);
    const events = await Array.fromAsync(server.answers.generate(request));
    const deltas = events.flatMap(({ event }) => (event?.$case === 'delta' ? [event.value] : []));
    const text = (channel: inference.Channel) =>
      deltas
        .filter((d) => d.channel === channel)
        .map((d) => d.text)
        .join('');
    expect(events[0]?.event).toMatchObject({
      $case: 'started',
      value: { adapter: first.name, startsInsideThink: true },
    });
    expect(events.at(-1)?.event?.$case).toBe('finished');
    expect(text(inference.Channel.REASONING)).toBe(whole.choices[0]!.reasoning);
    expect(text(inference.Channel.ANSWER)).toBe(whole.choices[0]!.answer);
    expect(deltas.flatMap((d) => d.tokenIds)).toEqual(whole.choices[0]!.tokenIds);
  });

  test('is counted as it would be asked', async () => {
    const request = { ...ask({ adapter: first.name }), input: template };
    const { started } = await server.answers.complete(request);
    expect(await server.answers.countTokens({ request })).toEqual({
      promptTokenCount: started!.promptTokenCount,
      contextLength,
    });
    await expect(server.answers.countTokens({})).rejects.toMatchObject({ fields: [{ field: 'request' }] });
  });

  test('is scored as the engine scores it, with and without an adapter, reading its prompt once', async () => {
    const continuations = [{ ids: [...randomIds(5, 4)] }, { ids: [1] }, { ids: [...randomIds(9, 5)] }];
    const model = await loadModel({ modelDir: base.dir });
    const adapter = await model.loadAdapter(first.dir);
    for (const [name, weights] of [
      ['', undefined],
      [first.name, adapter],
    ] as const) {
      const prompt = { ids: [...ids, name.length] };
      const request = { model: { base: base.name, adapter: name }, prompt, continuations };
      const { scores, readTokenCount } = await server.answers.score(request);
      for (const [i, { ids: added }] of continuations.entries()) {
        const o = { prompt: Uint32Array.from(prompt.ids), continuation: Uint32Array.from(added), adapter: weights };
        const alone = await model.scoreContinuation(o);
        expect(scores[i]!.logprobs).toEqual([...alone.logprobs]);
        const whole = await model.score({ tokens: Uint32Array.from([...prompt.ids, ...added]), adapter: weights });
        for (const [k, logprob] of scores[i]!.logprobs.entries())
          expect(Math.abs(logprob - (whole[prompt.ids.length - 1 + k] as number))).toBeLessThan(0.02);
      }
      // Of the prompt only the last token is read for every continuation.
      expect(readTokenCount).toBeLessThanOrEqual(prompt.ids.length + 2 + 15);
    }
    await model.close();
  });

  test('becomes vectors as the engine makes them, with and without an adapter, many at once, and leaves nothing in the cache', async () => {
    const model = await loadModel({ modelDir: base.dir });
    const adapter = await model.loadAdapter(first.dir);
    const lists = Array.from({ length: 20 }, (_, i) => randomIds(1 + 13 * i, i));
    for (const [name, weights] of [
      ['', undefined],
      [first.name, adapter],
    ] as const) {
      const request = { model: { base: base.name, adapter: name }, tokens: lists.map((list) => ({ ids: [...list] })) };
      const [mean, last] = await Promise.all([
        server.answers.embed(request),
        server.answers.embed({ ...request, pooling: inference.Pooling.LAST, normalize: true }),
      ]);
      expect(mean).toMatchObject({ baseDigest: base.digest, adapterDigest: name === '' ? '' : first.digest });
      for (const [i, tokens] of lists.entries()) {
        const alone = await model.embed({ tokens, pooling: 'mean', adapter: weights });
        expect(mean.embeddings[i]).toEqual({ values: [...alone], tokenCount: tokens.length });
        const raw = await model.embed({ tokens, pooling: 'last', adapter: weights });
        const length = Math.hypot(...raw);
        const { values } = last.embeddings[i]!;
        for (const [k, value] of values.entries()) expect(value * length).toBeCloseTo(raw[k]!, 4);
      }
    }
    await model.close();
    const text = 'Does the patient have a fever?';
    const [a, b] = (await server.answers.embed({ model: { base: base.name }, texts: [text, 'No.'] })).embeddings;
    const { promptTokenCount } = await server.answers.countTokens({
      request: { model: { base: base.name }, input: { $case: 'text', value: text } },
    });
    expect(a!.tokenCount).toBe(promptTokenCount);
    expect(b!.values).not.toEqual(a!.values);
    await settled();
    expect(await server.admin.getLoad({})).toMatchObject({ usedKvBlockCount: 0 });
  });

  test('that cannot become vectors is refused by its place, and a request for vectors ends when Cancel names it', async () => {
    const model = { base: base.name };
    const refused: [Parameters<typeof server.answers.embed>[0], string][] = [
      [{}, 'tokens'],
      [{ texts: ['a'], tokens: [{ ids: [1] }] }, 'tokens'],
      [{ texts: ['a', ''] }, 'texts[1]'],
      [{ tokens: [{ ids: [1] }, { ids: [vocabularySize] }] }, 'tokens[1].ids'],
      [{ tokens: [{ ids: [...randomIds(contextLength + 1, 1)] }] }, 'tokens[0]'],
      [{ texts: Array.from({ length: 2049 }, () => 'a') }, 'texts'],
    ];
    for (const [request, field] of refused)
      await expect(server.answers.embed({ ...request, model })).rejects.toMatchObject({
        code: 'invalid_argument',
        fields: [{ field }],
      });
    const requestId = crypto.randomUUID();
    const tokens = Array.from({ length: 100 }, (_, i) => ({ ids: [...randomIds(contextLength, i)] }));
    const long = server.answers.embed({ model, tokens, requestId }, { retry: false });
    long.catch(() => undefined);
    await waitFor(async () => (await server.admin.getLoad({})).usedKvBlockCount > 0);
    expect(await server.answers.cancel({ requestId })).toEqual({ found: true });
    await expect(long).rejects.toMatchObject({ code: 'cancelled' });
    await settled();
    expect((await server.admin.getLoad({})).usedKvBlockCount).toBe(0);
  });

  test('is scored after what is generated, ends when Cancel names it or at its deadline, and counts as running', async () => {
    const small = await world.start({ PRELOAD_BASES: base.name, MAX_RUNNING_REQUESTS: '1' });
    const stop = new AbortController();
    const running = Array.fromAsync(small.answers.generate(lasting(), { signal: stop.signal }));
    running.catch(() => undefined);
    await waitFor(async () => (await small.admin.getLoad({})).runningRequestCount === 1);
    const requestId = crypto.randomUUID();
    const request = {
      model: { base: base.name },
      prompt: { ids },
      continuations: [{ ids: [...randomIds(3000, 1)] }],
      requestId,
    };
    const scored = small.answers.score(request);
    await waitFor(async () => (await small.admin.getLoad({})).waitingRequestCount === 1);
    // Whatever comes later is more urgent than an evaluation.
    let answered = false;
    const urgent = answerOf({}, small).then(() => (answered = true));
    await waitFor(async () => (await small.admin.getLoad({})).waitingRequestCount === 2);
    await expect(small.answers.score(request)).rejects.toMatchObject({ reason: 'REQUEST_ID_REUSED' });
    await expect(small.answers.score({ ...request, requestId: '' }, { deadlineMs: 100 })).rejects.toMatchObject({
      code: 'deadline_exceeded',
    });
    await expect(
      small.answers.score({ ...request, requestId: '', maxQueueMs: 30 }, { retry: false }),
    ).rejects.toMatchObject({ reason: 'QUEUE_TIMEOUT' });
    stop.abort();
    await scored;
    expect(answered).toBe(true);
    await urgent;
    const long = {
      ...request,
      continuations: Array.from({ length: 64 }, (_, i) => ({ ids: [...randomIds(7000, i)] })),
    };
    const cancelled = small.answers.score(long, { retry: false });
    cancelled.catch(() => undefined);
    await waitFor(async () => (await small.admin.getLoad({})).runningRequestCount === 1);
    expect(await small.answers.cancel({ requestId })).toEqual({ found: true });
    await expect(cancelled).rejects.toMatchObject({ code: 'cancelled' });
    await settled(small);
    expect((await small.admin.getLoad({})).kvCacheUsage).toBe(0);
    await small.process.stop();
  });

  test('answers in texts of a schema that refers to itself, and refuses one that it cannot keep to by its keyword', async () => {
    const asked = (schema: object, seed: number) => ({
      ...ask(),
      sampling: { maxTokens: 300, temperature: 1, seed },
      constraint: { rule: { $case: 'jsonSchema' as const, value: JSON.stringify(schema) } },
    });
    const isTree = (value: unknown): boolean =>
      Array.isArray(value) && value.length <= 2 && value.every((item) => item === null || isTree(item));
    let finished = 0;
    for (let seed = 1; seed <= 12; seed += 1) {
      const tree = { type: 'array', maxItems: 2, items: { anyOf: [{ type: 'null' }, { $ref: '#' }] } };
      const { choices } = await server.answers.complete(asked(tree, seed));
      if (choices[0]!.finished!.reason === Reason.LENGTH) continue;
      finished += 1;
      expect([choices[0]!.answer, isTree(JSON.parse(choices[0]!.answer))]).toEqual([choices[0]!.answer, true]);
    }
    expect(finished).toBeGreaterThan(3);
    await expect(server.answers.complete(asked({ type: 'object', minProperties: 1 }, 1))).rejects.toMatchObject({
      code: 'invalid_argument',
      reason: 'CONSTRAINT_INVALID',
      message: expect.stringContaining('#/minProperties'),
    });
  });

  test.each([
    ['no input', { input: undefined }, 'input'],
    ['no ids', { input: tokens([]) }, 'input'],
    ['an id outside the vocabulary', { input: tokens([1, vocabularySize]) }, 'tokens.ids'],
    ['an unknown slot', { input: { $case: 'template', value: { slots: { x: 'y' }, builtin: '' } } }, 'template.slots'],
    [
      'an unknown role',
      { input: { $case: 'chat', value: { turns: [{ role: 'x', content: 'y' }] } } },
      'chat.turns[0].role',
    ],
    ['a temperature out of range', { sampling: { temperature: 9 } }, 'sampling.temperature'],
  ] as const)('with %s is refused by field', async (_, change, field) => {
    await expect(server.answers.complete({ ...ask(), ...(change as object) })).rejects.toMatchObject({
      code: 'invalid_argument',
      fields: [{ field }],
    });
  });

  test('that leaves no room for an answer is refused with its length, and one more token of room is enough', async () => {
    const fits = [...randomIds(contextLength - 1, 5)];
    const tooLong = { code: 'invalid_argument', reason: 'CONTEXT_TOO_LONG', message: expect.stringContaining('8192') };
    await expect(server.answers.complete(ask({ prompt: [...fits, 1] }))).rejects.toMatchObject(tooLong);
    expect(await answerOf({ prompt: fits, maxTokens: 50 })).toHaveLength(1);
    await expect(
      server.answers.score({
        model: { base: base.name, adapter: '' },
        prompt: { ids: fits },
        continuations: [{ ids: [1, 2] }],
      }),
    ).rejects.toMatchObject(tooLong);
  });
});

describe('an answer that nobody waits for any more', () => {
  const endless = (o: Parameters<typeof ask>[0] = {}) => ask({ maxTokens: 8000, ...o });

  test('ends when Cancel names it, and its place, adapter and base are free again', async () => {
    const requestId = crypto.randomUUID();
    const stream = server.answers.generate(endless({ requestId, adapter: second.name }));
    let deltas = 0;
    const reading = (async () => {
      for await (const { event } of stream) {
        if (event?.$case !== 'delta') continue;
        deltas += 1;
        if (deltas === 1) expect(await server.answers.cancel({ requestId })).toEqual({ found: true });
      }
    })();
    await expect(reading).rejects.toMatchObject({ code: 'cancelled' });
    await settled();
    const { adapters } = await server.admin.listLoadedAdapters({});
    expect(adapters.map((a) => a.runningRequestCount)).toEqual(adapters.map(() => 0));
    // Waits for the last user.
    await server.admin.unloadAdapter({ adapter: second.name });
    expect(await server.answers.cancel({ requestId })).toEqual({ found: false });
  });

  test('ends when its reader leaves', async () => {
    for await (const { event } of server.answers.generate(endless())) if (event?.$case === 'delta') break;
    await expect.poll(() => runningCount(), { timeout: 30_000 }).toBe(0);
  });

  test('ends at its deadline', async () => {
    await expect(server.answers.complete(endless(), { deadlineMs: 200 })).rejects.toMatchObject({
      code: 'deadline_exceeded',
    });
    await settled();
  });

  test('ends when its reader stops reading and too much waits: its blocks and place are free, and the reader is told', async () => {
    const tight = await world.start({ PRELOAD_BASES: base.name, MAX_UNREAD_BYTES: '1000000' });
    const stream = tight.answers
      .generate({ ...endless(), logprobs: { chosen: true, top: 20 } }, { deadlineMs: 60_000 })
      [Symbol.asyncIterator]();
    await stream.next();
    await settled(tight);
    expect((await tight.admin.getLoad({})).kvCacheUsage).toBe(0);
    let read = 0;
    const rest = (async () => {
      for (let next = await stream.next(); !next.done; next = await stream.next())
        if (next.value.event?.$case === 'delta') read += next.value.event.value.tokenIds.length;
    })();
    await expect(rest).rejects.toMatchObject({ code: 'resource_exhausted', reason: 'SLOW_READER' });
    expect(read).toBeGreaterThan(0);
    expect(read).toBeLessThan(8000);
    await tight.process.stop();
  });

  test('is not started twice under one id', async () => {
    const requestId = crypto.randomUUID();
    for await (const { event } of server.answers.generate(endless({ requestId }))) {
      if (event?.$case !== 'delta') continue;
      await expect(answerOf({ requestId })).rejects.toMatchObject({
        code: 'already_exists',
        reason: 'REQUEST_ID_REUSED',
      });
      break;
    }
    await settled();
    await answerOf({ requestId });
  });
});

describe('a full server', () => {
  test('lets requests wait in order, refuses more, and takes the next when a place is free', async () => {
    const small = await world.start({ PRELOAD_BASES: base.name, MAX_RUNNING_REQUESTS: '1', MAX_WAITING_REQUESTS: '1' });
    const stop = new AbortController();
    const running = Array.fromAsync(small.answers.generate(lasting(), { signal: stop.signal }));
    running.catch(() => undefined);
    await waitFor(async () => (await small.admin.getLoad({})).runningRequestCount === 1);
    await expect(small.answers.complete({ ...ask(), maxQueueMs: 50 })).rejects.toMatchObject({
      code: 'resource_exhausted',
      reason: 'QUEUE_TIMEOUT',
    });
    const waiting = answerOf({}, small);
    await waitFor(async () => (await small.admin.getLoad({})).waitingRequestCount === 1);
    await expect(small.answers.complete(ask(), { retry: false })).rejects.toMatchObject({ reason: 'QUEUE_FULL' });
    stop.abort();
    expect(await waiting).toEqual(await answerOf({}));
    await settled(small);
    expect((await small.process.stop()).code).toBe(0);
  });
});

describe('the Open Inference Protocol', () => {
  type Ask = Parameters<typeof server.oip.modelInfer>[0];
  const bytes = (...texts: string[]) => ({ bytesContents: texts.map((text) => Buffer.from(text)) });
  const parameters = {
    max_tokens: { parameterChoice: { $case: 'int64Param' as const, value: 9 } },
    temperature: { parameterChoice: { $case: 'doubleParam' as const, value: 0 } },
  };
  const asking = (more: Ask = {}): Ask => ({
    modelName: first.name,
    id: 'a-7',
    parameters,
    inputs: [{ name: 'prompt', datatype: 'BYTES', shape: [2], contents: bytes('Is it a fever?', 'Is it a cold?') }],
    ...more,
  });

  test('answers questions and plain texts as Generate does, in contents or raw', async () => {
    const answer = async (input: inference.GenerateRequest['input'], model: { base?: string; adapter?: string }) =>
      (await server.answers.complete({ model, input, sampling: { maxTokens: 9 } })).choices[0]!;
    const question = { $case: 'template' as const, value: { slots: { question: 'Is it a cold?' }, builtin: '' } };
    const expected = await answer(question, { adapter: first.name });
    const made = await server.oip.modelInfer(asking());
    expect(made).toMatchObject({ modelName: first.name, modelVersion: first.digest, id: 'a-7' });
    expect(made.outputs.map(({ name, datatype, shape }) => [name, datatype, shape])).toEqual([
      ['answer', 'BYTES', [2]],
      ['reasoning', 'BYTES', [2]],
    ]);
    const [answers, thoughts] = made.outputs.map(({ contents }) => contents!.bytesContents.map(String));
    expect([answers![1], thoughts![1]]).toEqual([expected.answer, expected.reasoning]);
    const raw = (text: string) => Buffer.from([text.length, 0, 0, 0, ...Buffer.from(text)]);
    const plain = await server.oip.modelInfer(
      asking({
        modelName: base.name,
        inputs: [{ name: 'text', datatype: 'BYTES', shape: [1, 1] }],
        outputs: [{ name: 'answer' }],
        rawInputContents: [raw('The patient')],
      }),
    );
    const continued = (await answer({ $case: 'text', value: 'The patient' }, { base: base.name })).answer;
    expect(plain.outputs).toMatchObject([{ name: 'answer', shape: [1, 1] }]);
    expect(plain.outputs[0]!.contents).toBeUndefined();
    const [output] = plain.rawOutputContents as [Buffer];
    expect(output.readUInt32LE(0)).toBe(Buffer.byteLength(continued));
    expect(output.subarray(4).toString()).toBe(continued);
  });

  test('refuses other names, types, shapes, parameters and values by their place', async () => {
    const input = { name: 'prompt', datatype: 'BYTES', shape: [1], contents: bytes('x') };
    const bool = { parameterChoice: { $case: 'boolParam' as const, value: true } };
    const refused: [Ask, string][] = [
      [{ inputs: [] }, 'inputs'],
      [{ inputs: [input, input] }, 'inputs'],
      [{ inputs: [{ ...input, name: 'image' }] }, 'inputs[0].name'],
      [{ inputs: [{ ...input, datatype: 'FP32' }] }, 'inputs[0].datatype'],
      [{ inputs: [{ ...input, shape: [1, 2] }] }, 'inputs[0].shape'],
      [{ inputs: [{ ...input, shape: [17] }] }, 'inputs[0].shape'],
      [{ inputs: [{ ...input, shape: [2] }] }, 'inputs[0].contents.bytes_contents'],
      [
        { inputs: [{ ...input, contents: { bytesContents: [Buffer.from([0xff])] } }] },
        'inputs[0].contents.bytes_contents',
      ],
      [{ rawInputContents: [Buffer.from([0, 0, 0, 0])] }, 'inputs[0].contents'],
      [
        { inputs: [{ ...input, contents: undefined }], rawInputContents: [Buffer.from([9, 0, 0, 0, 1])] },
        'raw_input_contents[0]',
      ],
      [{ parameters: { beams: bool } }, 'parameters'],
      [{ parameters: { seed: bool } }, 'parameters[seed]'],
      [
        { parameters: { temperature: { parameterChoice: { $case: 'doubleParam', value: 9 } } } },
        'sampling.temperature',
      ],
      [{ outputs: [{ name: 'logits' }] }, 'outputs[0].name'],
    ];
    for (const [more, field] of refused)
      await expect(server.oip.modelInfer(asking(more))).rejects.toMatchObject({
        code: 'invalid_argument',
        fields: [{ field }],
      });
    await expect(server.oip.modelInfer(asking({ modelVersion: 'sha256:0' }))).rejects.toMatchObject({
      code: 'not_found',
    });
  });
});

test('two servers of one mesh start at once, each at an address of its own', async () => {
  const [one, other] = await Promise.all([world.start(), world.start()]);
  expect(one.address).not.toBe(other.address);
  await Promise.all([one.process.stop(), other.process.stop()]);
});

describe('draining', () => {
  test('refuses new requests and lets the running one finish; SIGTERM then ends the process with 0', async () => {
    const drained = await world.start({ PRELOAD_BASES: base.name });
    const stream = drained.answers.generate(ask({ maxTokens: 8000 }));
    let made = 0;
    for await (const { event } of stream) {
      if (event?.$case !== 'delta') continue;
      if (made === 0) {
        expect((await drained.admin.drain({})).runningRequestCount).toBe(1);
        await expect(drained.answers.complete(ask(), { retry: false })).rejects.toMatchObject({
          code: 'unavailable',
          reason: 'DRAINING',
        });
        drained.process.signal('SIGTERM');
      }
      made += event.value.tokenIds.length;
    }
    expect(made).toBe(8000);
    expect((await drained.process.exited).code).toBe(0);
  });
});

test('prompts and answers reach no log', async () => {
  const question = 'Does Mrs Quillfeather have a fever?';
  const { choices } = await server.answers.complete({
    ...ask({ adapter: first.name }),
    input: { $case: 'template', value: { slots: { question }, builtin: '' } },
  });
  await expect(
    server.answers.complete({
      ...ask(),
      input: { $case: 'chat', value: { turns: [{ role: question, content: question }] } },
    }),
  ).rejects.toMatchObject({ code: 'invalid_argument' });
  await server.admin.getLoad({});
  const logged = server.process.lines().join('\n');
  expect(logged).toContain('InferenceService/Complete');
  expect(logged).not.toContain('Quillfeather');
  for (const text of [choices[0]!.answer, choices[0]!.reasoning])
    if (text.length > 8) expect(logged).not.toContain(text);
});
