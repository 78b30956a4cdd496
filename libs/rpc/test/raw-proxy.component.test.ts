import { once } from 'node:events';
import { Failure } from '@medmesh/errors';
import { waitFor } from '@medmesh/testkit';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type CallContext, createClient, Metadata, openChannel, rawProxy, remainingMs } from '../src/index.ts';
import { all, EchoServiceDefinition, notes, rejection, startTestServer, type TestServer } from './echo-service.ts';

let backend: TestServer;
let gateway: TestServer;
let seen: { context: CallContext; cancelled?: boolean }[] = [];
let sent = 0;
let mayRead: Promise<void> | undefined;

const kilobytes64 = 'x'.repeat(64 * 1024);

function see(context: CallContext): (typeof seen)[number] {
  const call = { context };
  seen.push(call);
  context.header.set('served-by', 'backend');
  context.trailer.set('cost', '7');
  context.trailer.set('digest-bin', new Uint8Array([0, 1, 255]));
  return call;
}

async function untilCancelled(call: (typeof seen)[number]): Promise<never> {
  await once(call.context.signal, 'abort');
  call.cancelled = true;
  throw call.context.signal.reason;
}

beforeAll(async () => {
  backend = await startTestServer({
    say: async ({ text }, context) => {
      const call = see(context);
      if (text === 'hang') return untilCancelled(call);
      if (text !== 'fail') return { text };
      throw new Failure('invalid_argument', 'is empty', {
        reason: 'FIELD_INVALID',
        fields: [{ field: 'text', description: 'is empty' }],
        metadata: { limit: '1' },
        retryAfterMs: 250,
      });
    },
    generate: async function* ({ text }, context) {
      see(context);
      for (let i = 0; i < Number(text); i++) {
        sent++;
        yield { text: kilobytes64 };
      }
    },
    watchNotes: async function* (_, context) {
      const call = see(context);
      yield { text: 'first' };
      await untilCancelled(call);
    },
    collect: async (requests, context) => {
      see(context);
      await mayRead;
      let bytes = 0;
      for await (const { text } of requests) bytes += text.length;
      return { text: String(bytes) };
    },
    chat: async function* (requests, context) {
      see(context);
      for await (const { text } of requests) {
        if (text === 'fail') throw new Failure('failed_precondition', 'paused', { reason: 'JOB_PAUSED' });
        yield { text: text.toUpperCase() };
      }
    },
  });
  gateway = await startTestServer([
    rawProxy(EchoServiceDefinition, openChannel(backend.address), { dropHeaders: ['authorization'] }),
  ]);
});
afterAll(async () => {
  await gateway.stop();
  await backend.stop();
});
beforeEach(() => {
  seen = [];
  sent = 0;
  mayRead = undefined;
});
const client = () => createClient(EchoServiceDefinition, gateway.address);

describe('messages through the proxy', () => {
  test('pass unchanged in all four kinds of call', async () => {
    expect(await client().say({ text: 'ü' })).toEqual({ text: 'ü' });
    expect(await all(client().generate({ text: '3' }))).toEqual(Array(3).fill({ text: kilobytes64 }));
    expect(await client().collect(notes('ab', 'c'))).toEqual({ text: '3' });
    expect(await all(client().chat(notes('a', 'b')))).toEqual([{ text: 'A' }, { text: 'B' }]);
  });

  test('of a conversation pass one by one, not at its end', async () => {
    const heard: string[] = [];
    async function* talk() {
      for (const text of ['a', 'b', 'c']) {
        yield { text };
        await waitFor(() => heard.includes(text.toUpperCase()));
      }
    }
    for await (const { text } of client().chat(talk())) heard.push(text);
    expect(heard).toEqual(['A', 'B', 'C']);
  });

  test('are passed without decoding: what the backend cannot read, the backend refuses', async () => {
    const bytes = {
      encode: (v: { text: string }) => ({ finish: () => Buffer.from(v.text) }),
      decode: () => ({ text: '' }),
    };
    const say = { ...EchoServiceDefinition.methods.say, requestType: bytes };
    const careless = createClient({ ...EchoServiceDefinition, methods: { say } }, gateway.address);
    expect(await rejection(careless.say({ text: '{"te' }))).toMatchObject({
      code: 'invalid_argument',
      reason: 'REQUEST_MALFORMED',
    });
    expect(backend.logLines.some((l) => l.includes('REQUEST_MALFORMED'))).toBe(true);
  });
});

describe('metadata through the proxy', () => {
  test('goes to the backend, but for what stops at the gateway', async () => {
    await client().say(
      { text: 'a' },
      { metadata: Metadata({ 'x-project': 'p1', 'id-bin': new Uint8Array([0, 200]), authorization: 'Bearer x' }) },
    );
    const metadata = seen[0]?.context.metadata ?? Metadata();
    expect(metadata.get('x-project')).toBe('p1');
    expect([...(metadata.get('id-bin') ?? [])]).toEqual([0, 200]);
    expect(metadata.has('authorization')).toBe(false);
  });

  test('comes back as headers and trailers', async () => {
    for (const call of [
      (o: object) => client().say({ text: 'a' }, o),
      (o: object) => all(client().generate({ text: '1' }, o)),
      (o: object) => client().collect(notes('a'), o),
      (o: object) => all(client().chat(notes('a'), o)),
    ]) {
      let header: Metadata | undefined;
      let trailer: Metadata | undefined;
      const onHeader = (h: Metadata) => {
        header = h;
      };
      const onTrailer = (t: Metadata) => {
        trailer = t;
      };
      await call({ onHeader, onTrailer });
      expect(header?.get('served-by')).toBe('backend');
      expect(trailer?.get('cost')).toBe('7');
      expect([...(trailer?.get('digest-bin') ?? [])]).toEqual([0, 1, 255]);
    }
  });
});

describe('failures through the proxy', () => {
  test('keep their details', async () => {
    expect(await rejection(client().say({ text: 'fail' }))).toMatchObject({
      code: 'invalid_argument',
      message: 'is empty',
      reason: 'FIELD_INVALID',
      fields: [{ field: 'text', description: 'is empty' }],
      metadata: { limit: '1' },
      retryAfterMs: 250,
    });
  });

  test('in the middle of a conversation come after the messages before them', async () => {
    const heard: string[] = [];
    const talk = async () => {
      for await (const { text } of client().chat(notes('a', 'fail'))) heard.push(text);
    };
    expect(await rejection(talk())).toMatchObject({ code: 'failed_precondition', reason: 'JOB_PAUSED' });
    expect(heard).toEqual(['A']);
  });

  test('of a backend that is away are unavailable and name no address inside', async () => {
    const lonely = await startTestServer([rawProxy(EchoServiceDefinition, openChannel('127.0.0.1:1'))]);
    const failure = (await rejection(
      createClient(EchoServiceDefinition, lonely.address).say({ text: 'a' }),
    )) as Failure;
    expect(failure).toMatchObject({
      code: 'unavailable',
      reason: 'BACKEND_UNAVAILABLE',
      metadata: { service: 'medmesh.test.v1.EchoService' },
    });
    expect(JSON.stringify([failure, failure.message])).not.toContain('127.0.0.1');
    await lonely.stop();
  });
});

describe('time and cancellation through the proxy', () => {
  test("the caller's deadline reaches the backend, shortened by the way", async () => {
    await client().say({ text: 'a' }, { deadlineMs: 5000 });
    const left = remainingMs(seen[0]?.context as CallContext) ?? Number.NaN;
    expect(left).toBeGreaterThan(1000);
    expect(left).toBeLessThanOrEqual(5001);
    expect(await rejection(client().say({ text: 'hang' }, { deadlineMs: 200 }))).toMatchObject({
      code: 'deadline_exceeded',
    });
    await waitFor(() => seen.at(-1)?.cancelled);
  });

  test('a call without deadline has none at the backend', async () => {
    for await (const _ of client().watchNotes({ text: '' })) break;
    expect(remainingMs(seen[0]?.context as CallContext)).toBeUndefined();
  });

  test('cancelling a unary call, and leaving a stream, reaches the backend', async () => {
    const controller = new AbortController();
    const call = rejection(client().say({ text: 'hang' }, { signal: controller.signal }));
    await waitFor(() => seen.length === 1);
    controller.abort();
    expect(await call).toMatchObject({ code: 'cancelled' });
    await waitFor(() => seen[0]?.cancelled);

    for await (const _ of client().watchNotes({ text: '' })) break;
    await waitFor(() => seen[1]?.cancelled);
  });
});

describe('a large stream through the proxy', () => {
  test('of a thousand 64 KiB messages arrives whole', async () => {
    let bytes = 0;
    for await (const { text } of client().generate({ text: '1000' })) bytes += text.length;
    expect(bytes).toBe(1000 * 64 * 1024);
  });

  test('waits for a reader that does not read, instead of filling memory', async () => {
    const reader = client().generate({ text: '1000' })[Symbol.asyncIterator]();
    await reader.next();
    expect(await standsStill(() => sent)).toBeLessThan(300);
    let received = 1;
    while (!(await reader.next()).done) received++;
    expect(received).toBe(1000);
  });

  test('of requests waits for a backend that does not read, and then arrives whole', async () => {
    let produced = 0;
    async function* upload() {
      for (; produced < 1000; produced++) yield { text: kilobytes64 };
    }
    const gate = Promise.withResolvers<void>();
    mayRead = gate.promise;
    const collected = client().collect(upload());
    const stood = await standsStill(() => produced);
    expect(stood).toBeGreaterThan(0);
    expect(stood).toBeLessThan(300);
    gate.resolve();
    expect(await collected).toEqual({ text: String(1000 * 64 * 1024) });
  });
});

/** Waits until every buffer on the way is full and the count grows no more. */
async function standsStill(count: () => number): Promise<number> {
  let before = -1;
  const still = () => {
    const now = count();
    const same = now === before && now > 0;
    before = now;
    return same;
  };
  await waitFor(still, { what: 'the sender to stand still', intervalMs: 300 });
  return before;
}
