import { getEventListeners } from 'node:events';
import { startTelemetry } from '@medmesh/telemetry';
import { context, createContextKey, ROOT_CONTEXT } from '@opentelemetry/api';
import { beforeAll, describe, expect, test } from 'vitest';
import { endedBy, withEnd, withinContext } from '../src/generators.ts';

async function* count(to: number): AsyncGenerator<number, void, undefined> {
  for (let i = 0; i < to; i++) yield i;
}

describe('withEnd', () => {
  test('tells once how a generator ended: by itself, by its reader, or by an error', async () => {
    const ends: unknown[] = [];
    const note = (error?: unknown) => void ends.push(error ?? 'ended');
    for await (const _ of withEnd(count(3), note)) expect(ends).toEqual([]);
    for await (const _ of withEnd(count(3), note)) break;
    const broken = new Error('broken');
    const failing = withEnd(
      (async function* () {
        yield* count(1);
        throw broken;
      })(),
      note,
    );
    await failing.next();
    await expect(failing.next()).rejects.toBe(broken);
    expect((await failing.next()).done).toBe(true);
    expect(ends).toEqual(['ended', 'ended', broken]);
  });
});

describe('endedBy', () => {
  test('passes messages through and leaves no listener behind, however many there were', async () => {
    const { signal } = new AbortController();
    let received = 0;
    let mostListeners = 0;
    for await (const _ of endedBy(signal, count(10_000))) {
      received++;
      mostListeners = Math.max(mostListeners, getEventListeners(signal, 'abort').length);
    }
    expect(received).toBe(10_000);
    expect(mostListeners).toBe(1);
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
  });

  test('leaves no listener behind when the reader leaves early', async () => {
    const { signal } = new AbortController();
    for await (const i of endedBy(signal, count(10))) if (i === 3) break;
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
  });

  test('passes the return value, which is the response of a unary call', async () => {
    const unary = (async function* (): AsyncGenerator<never, string, undefined> {
      yield* [];
      return 'response';
    })();
    expect(await endedBy<string>(new AbortController().signal, unary).next()).toEqual({
      done: true,
      value: 'response',
    });
  });

  test('ends with the reason while the inner generator is stuck', async () => {
    const controller = new AbortController();
    const stuck = (async function* (): AsyncGenerator<number, void, undefined> {
      yield 1;
      await new Promise(() => undefined);
    })();
    const ended = endedBy(controller.signal, stuck);
    await ended.next();
    const pending = ended.next();
    const reason = new Error('shutting down');
    controller.abort(reason);
    await expect(pending).rejects.toBe(reason);
  });

  test('ends between messages too, and lets the inner generator clean up', async () => {
    const controller = new AbortController();
    let cleaned = false;
    const inner = (async function* () {
      try {
        yield* count(10);
      } finally {
        cleaned = true;
      }
    })();
    const ended = endedBy(controller.signal, inner);
    await ended.next();
    controller.abort(new Error('shutting down'));
    await expect(ended.next()).rejects.toThrow('shutting down');
    await new Promise(setImmediate);
    expect(cleaned).toBe(true);
  });
});

describe('withinContext', () => {
  beforeAll(() => startTelemetry({}));

  test('runs every step, also after waits and in the clean-up, in its context and not the reader’s', async () => {
    const key = createContextKey('where');
    const seen: unknown[] = [];
    const note = () => void seen.push(context.active().getValue(key));
    const inner = (async function* () {
      try {
        note();
        yield 1;
        await new Promise(setImmediate);
        note();
        yield 2;
      } finally {
        note();
      }
    })();
    await context.with(ROOT_CONTEXT.setValue(key, 'reader'), async () => {
      for await (const _ of withinContext(ROOT_CONTEXT.setValue(key, 'inside'), inner)) note();
    });
    expect(seen).toEqual(['inside', 'reader', 'inside', 'reader', 'inside']);
  });
});
