import { once } from 'node:events';
import { Failure } from '@medmesh/errors';
import { waitFor } from '@medmesh/testkit';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type CallContext, createClient, Metadata, maxMessageBytes, openChannel, remainingMs } from '../src/index.ts';
import { all, EchoServiceDefinition, notes, rejection, startTestServer, type TestServer } from './echo-service.ts';

let server: TestServer;
/** What the handlers saw of the current test's calls. */
let seen: { context: CallContext; cancelled?: boolean }[] = [];
let retryAfterMs = 20;
let failuresLeft = 0;

async function untilCancelled(context: CallContext): Promise<never> {
  const call: (typeof seen)[number] = { context };
  seen.push(call);
  await once(context.signal, 'abort');
  call.cancelled = true;
  throw context.signal.reason;
}

async function unavailableAtFirst(text: string, context: CallContext) {
  seen.push({ context });
  if (failuresLeft-- > 0) throw new Failure('unavailable', 'warming up', { retryAfterMs });
  return { text };
}

beforeAll(async () => {
  server = await startTestServer({
    say: async ({ text }, context) => (text === 'hang' ? untilCancelled(context) : unavailableAtFirst(text, context)),
    getNote: async ({ text }, context) => unavailableAtFirst(text, context),
    watchNotes: async function* (_, context) {
      yield { text: 'first' };
      await untilCancelled(context);
    },
    collect: async (requests) => ({ text: (await all(requests)).map((n) => n.text).join('') }),
    chat: async function* (requests, context) {
      context.header.set('answer', 'header');
      for await (const { text } of requests) yield { text: text.toUpperCase() };
      context.trailer.set('answer', 'trailer');
    },
  });
});
afterAll(() => server.stop());
beforeEach(() => {
  seen = [];
  failuresLeft = 0;
  retryAfterMs = 20;
});
const client = (o?: Parameters<typeof createClient>[2]) => createClient(EchoServiceDefinition, server.address, o);

describe('the four kinds of call', () => {
  test('carry messages both ways, and headers and trailers', async () => {
    expect(await client().say({ text: 'a' })).toEqual({ text: 'a' });
    expect(await client().collect(notes('a', 'b', 'c'))).toEqual({ text: 'abc' });
    const got: (string | undefined)[] = [];
    const options = {
      onHeader: (h: Metadata) => void got.push(h.get('answer')),
      onTrailer: (t: Metadata) => void got.push(t.get('answer')),
    };
    expect(await all(client().chat(notes('a', 'b'), options))).toEqual([{ text: 'A' }, { text: 'B' }]);
    expect(got).toEqual(['header', 'trailer']);
  });

  test("send the client's metadata", async () => {
    await client({ metadata: Metadata({ 'x-project': 'p1' }) }).say({ text: 'a' });
    expect(seen[0]?.context.metadata.get('x-project')).toBe('p1');
  });
});

describe('a deadline', () => {
  test('ends the call on both sides, and both call it deadline_exceeded', async () => {
    expect(await rejection(client().say({ text: 'hang' }, { deadlineMs: 1000 }))).toMatchObject({
      code: 'deadline_exceeded',
    });
    await waitFor(() => seen[0]?.cancelled);
    await waitFor(() => server.logLines.some((l) => l.includes('"DEADLINE_EXCEEDED"')));
  });

  test('of a client is its own default for unary calls', async () => {
    expect(await rejection(client({ unaryDeadlineMs: 100 }).say({ text: 'hang' }))).toMatchObject({
      code: 'deadline_exceeded',
    });
  });

  test('is thirty seconds unless told, tells the handler what is left, and does not bind streams', async () => {
    await client().say({ text: 'a' });
    const left = remainingMs(seen[0]?.context as CallContext);
    expect(left).toBeGreaterThan(25_000);
    expect(left).toBeLessThanOrEqual(30_001);
    for await (const _ of client().watchNotes({ text: '' })) break;
    await client().say({ text: 'a' }, { deadlineMs: Number.POSITIVE_INFINITY });
    expect(remainingMs(seen.at(-1)?.context as CallContext)).toBeUndefined();
  });

  test('cannot be forged through the header handlers read', async () => {
    await client().say(
      { text: 'a' },
      { metadata: Metadata({ 'medmesh-deadline-unix-ms': '1' }), deadlineMs: Number.POSITIVE_INFINITY },
    );
    expect(remainingMs(seen[0]?.context as CallContext)).toBeUndefined();
  });

  test('that has passed ends the call before it is sent', async () => {
    expect(await rejection(client().say({ text: 'a' }, { deadlineMs: 0 }))).toMatchObject({
      code: 'deadline_exceeded',
    });
    // Had it been sent, it would have come before this one.
    await client().say({ text: 'next' });
    expect(seen).toHaveLength(1);
  });
});

describe('cancelling', () => {
  test('a unary call reaches the handler; the caller gets cancelled', async () => {
    const controller = new AbortController();
    const call = rejection(client().say({ text: 'hang' }, { signal: controller.signal }));
    await waitFor(() => seen.length === 1);
    controller.abort();
    expect(await call).toMatchObject({ code: 'cancelled' });
    await waitFor(() => seen[0]?.cancelled);
    await waitFor(() => server.logLines.some((l) => l.includes('"CANCELLED"')));
  });

  test('leaving a stream early reaches the handler', async () => {
    for await (const { text } of client().watchNotes({ text: '' })) {
      expect(text).toBe('first');
      await waitFor(() => seen.length === 1);
      break;
    }
    await waitFor(() => seen[0]?.cancelled);
  });

  test("the signal's reason decides the code: a timeout is a deadline, a Failure is itself", async () => {
    expect(await rejection(client().say({ text: 'hang' }, { signal: AbortSignal.timeout(50) }))).toMatchObject({
      code: 'deadline_exceeded',
    });
    const reason = new Failure('failed_precondition', 'paused');
    expect(await rejection(client().say({ text: 'hang' }, { signal: AbortSignal.abort(reason) }))).toBe(reason);
    expect(await rejection(client().say({ text: 'hang' }, { signal: AbortSignal.abort('why not') }))).toMatchObject({
      code: 'cancelled',
    });
  });
});

describe('an unavailable server', () => {
  test('is asked again when the method only reads', async () => {
    failuresLeft = 2;
    expect(await client().getNote({ text: 'a' })).toEqual({ text: 'a' });
    expect(seen).toHaveLength(3);
  });

  test('is asked again when the request carries a request_id', async () => {
    failuresLeft = 1;
    expect(await client().say({ text: 'a', requestId: 'ea91f2e8-3d3f-4c66-a3c5-bd6ce3aa1e12' })).toMatchObject({
      text: 'a',
    });
    expect(seen).toHaveLength(2);
  });

  test('is not asked again when that could do the work twice', async () => {
    failuresLeft = 1;
    expect(await rejection(client().say({ text: 'a' }))).toMatchObject({ code: 'unavailable' });
    expect(seen).toHaveLength(1);
  });

  test('is asked no more than six times', async () => {
    failuresLeft = 100;
    expect(await rejection(client().getNote({ text: 'a' }))).toMatchObject({
      code: 'unavailable',
      message: 'warming up',
    });
    expect(seen).toHaveLength(6);
  });

  test('is not asked again where the pause would outlast the deadline', async () => {
    failuresLeft = 100;
    retryAfterMs = 60_000;
    expect(await rejection(client().getNote({ text: 'a' }))).toMatchObject({ code: 'unavailable' });
    expect(seen).toHaveLength(1);
  });

  test('that nobody started is unavailable within the deadline', async () => {
    const nobody = createClient(EchoServiceDefinition, '127.0.0.1:1');
    expect(await rejection(nobody.say({ text: 'a' }, { deadlineMs: 5000 }))).toMatchObject({ code: 'unavailable' });
  });
});

describe('a channel', () => {
  test('spreads its calls over all addresses, and goes on with the rest when one is gone', async () => {
    const asked = [0, 0];
    const servers = await Promise.all(
      asked.map((_, i) =>
        startTestServer({
          getNote: async ({ text }) => {
            asked[i] = (asked[i] ?? 0) + 1;
            return { text };
          },
        }),
      ),
    );
    const channel = openChannel(`ipv4:${servers.map((s) => s.address).join(',')}`);
    const spread = createClient(EchoServiceDefinition, channel);
    // The first calls go to whichever connection stands first.
    await waitFor(async () => {
      await spread.getNote({ text: 'a' });
      return asked.every((n) => n > 0);
    });
    const before = [...asked];
    for (let i = 0; i < 10; i++) await spread.getNote({ text: 'a' });
    expect(asked.map((n, i) => n - (before[i] ?? 0))).toEqual([5, 5]);

    await servers[0]?.stop();
    for (let i = 0; i < 4; i++) expect(await spread.getNote({ text: 'b' })).toEqual({ text: 'b' });
    channel.close();
    await servers[1]?.stop();
  });
});

describe('a message', () => {
  test('of eight megabytes passes, one beyond sixteen is refused', async () => {
    const large = 'x'.repeat(8 * 1024 * 1024);
    expect((await client().say({ text: large })).text.length).toBe(large.length);
    expect(await rejection(client().say({ text: 'x'.repeat(maxMessageBytes) }))).toMatchObject({
      code: 'resource_exhausted',
    });
  });
});
