import { createHmac } from 'node:crypto';
import type { inference } from '@medmesh/proto';
import { Metadata, tenantHeader } from '@medmesh/rpc';
import { waitFor } from '@medmesh/testkit';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type BaseFacts, randomIds } from './model-fixture.ts';
import {
  type InferenceWorld,
  openInferenceWorld,
  type RunningInference,
  type StoredAdapter,
} from './running-inference.ts';

const key = '5'.repeat(64);
let world: InferenceWorld;
let server: RunningInference;
let base: BaseFacts;
let adapter: StoredAdapter;
beforeAll(async () => {
  world = await openInferenceWorld();
  base = await world.putBase('base', 1);
  adapter = await world.putAdapter('first', base, 11);
  server = await world.start({ PRELOAD_BASES: base.name, KV_HASH_KEY: key, MAX_UNREAD_BYTES: '16384' });
});
afterAll(() => world?.close());

const prompt = [...randomIds(100, 3)];
const ask = (ids: number[], o: { tenant?: string; adapter?: string } = {}, on = server) =>
  on.answers.complete(
    {
      model: { base: base.name, adapter: o.adapter ?? '' },
      input: { $case: 'tokens', value: { ids } },
      sampling: { maxTokens: 1, ignoreEos: true },
    },
    { metadata: Metadata({ [tenantHeader]: o.tenant ?? '' }), retry: false },
  );

/** A router's picture of a server's cache, made of nothing but the stream. */
function follow(on = server) {
  const stop = new AbortController();
  const blocks = new Map<string, inference.KvBlock>();
  const view = {
    blocks,
    complete: false,
    blockTokens: 0,
    next: 0,
    failure: undefined as unknown,
    cleared: false,
    stop,
  };
  const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
  const reading = (async () => {
    for await (const batch of on.admin.watchKvEvents({ base: base.digest }, { signal: stop.signal })) {
      expect(batch.sequence).toBe(view.next++);
      expect(batch.snapshot).toBe(!view.complete);
      view.complete ||= batch.snapshotComplete;
      view.blockTokens = batch.blockTokenCount;
      for (const { event } of batch.events) {
        if (event?.$case === 'stored') {
          const { parent, hash } = event.value;
          expect(parent.length === 0 || blocks.has(hex(parent))).toBe(true);
          expect(blocks.has(hex(hash))).toBe(false);
          blocks.set(hex(hash), event.value);
        } else if (event?.$case === 'removed') expect(blocks.delete(hex(event.value))).toBe(true);
        else if (event?.$case === 'cleared') view.cleared = true;
      }
    }
  })().catch((error: unknown) => {
    view.failure = error;
  });
  return { ...view, view, reading };
}

/** The contract's formula, by who has the key and none of our code. */
function hashesOf(
  ids: readonly number[],
  blockTokens: number,
  o: { tenant?: string; adapterDigest?: string } = {},
): string[] {
  const source = JSON.stringify([o.tenant ?? '', base.digest, o.adapterDigest ?? '', '']);
  const scope = createHmac('sha256', Buffer.from(key, 'hex')).update(source).digest();
  const hashes: string[] = [];
  let parent: Uint8Array = Buffer.alloc(32);
  for (let at = 0; at + blockTokens <= ids.length; at += blockTokens) {
    const tokens = Buffer.from(Uint32Array.from(ids.slice(at, at + blockTokens)).buffer);
    parent = createHmac('sha256', scope)
      .update(Buffer.concat([parent, tokens]))
      .digest();
    hashes.push(Buffer.from(parent).toString('hex'));
  }
  return hashes;
}

test('a router with the key knows which prompt finds its beginning, each tenant’s and adapter’s by itself, also what was there before it came', async () => {
  const early = follow();
  await waitFor(() => early.view.complete);
  await ask(prompt);
  await ask(prompt, { tenant: 'ward-3' });
  const late = follow();
  await waitFor(() => late.view.complete);
  await ask(prompt, { adapter: adapter.name });
  const expected = [{}, { tenant: 'ward-3' }, { adapterDigest: adapter.digest }];
  for (const { blocks, view } of [early, late]) {
    const { blockTokens } = view;
    expect(blockTokens).toBeGreaterThan(0);
    for (const of of expected)
      await waitFor(() => hashesOf(prompt, blockTokens, of).every((hash) => blocks.has(hash)), { what: 'the blocks' });
    expect(blocks.has(hashesOf(prompt, blockTokens, { tenant: 'ward-4' })[0] ?? '')).toBe(false);
    // The rest of a text is told too, with fewer tokens.
    expect([...blocks.values()].some(({ tokenCount }) => tokenCount < blockTokens)).toBe(true);
  }
  expect([...late.blocks.keys()].toSorted()).toEqual([...early.blocks.keys()].toSorted());
  for (const { stop, reading } of [early, late]) {
    stop.abort();
    await reading;
  }
});

test('a watcher that does not read is told to begin anew, and answers go on', async () => {
  const stream = server.admin.watchKvEvents({ base: base.name })[Symbol.asyncIterator]();
  expect((await stream.next()).value).toMatchObject({ sequence: 0, snapshot: true });
  // Every continuation leaves a block of its own: together more than the connection and the server hold for a reader.
  for (let i = 0; i < 40; i += 1)
    await server.answers.score({
      model: { base: base.name },
      prompt: { ids: [i] },
      continuations: Array.from({ length: 64 }, (_, k) => ({ ids: [k, i] })),
    });
  const drain = async () => {
    for (;;) if ((await stream.next()).done === true) return;
  };
  await expect(drain()).rejects.toMatchObject({ code: 'resource_exhausted', reason: 'SLOW_READER' });
});

test('without a key hashes differ between servers, nothing is told where nothing is remembered, and the end of a base or server ends the stream', async () => {
  const one = await world.start({ PRELOAD_BASES: base.name });
  const off = await world.start({ PRELOAD_BASES: base.name, PREFIX_CACHE: 'off' });
  await expect(Array.fromAsync(off.admin.watchKvEvents({}))).rejects.toMatchObject({ reason: 'PREFIX_CACHE_OFF' });
  await expect(Array.fromAsync(one.admin.watchKvEvents({ base: 'projects/p/models/none' }))).rejects.toMatchObject({
    code: 'not_found',
  });
  await ask(prompt, {}, one);
  const unloaded = follow(one);
  await waitFor(() => unloaded.view.complete);
  expect(unloaded.blocks.size).toBeGreaterThan(2);
  expect(unloaded.blocks.has(hashesOf(prompt, unloaded.view.blockTokens)[0] ?? '')).toBe(false);
  await one.admin.unloadBase({ base: base.name });
  await unloaded.reading;
  expect(unloaded.view).toMatchObject({ cleared: true, failure: { code: 'unavailable', reason: 'KV_CACHE_CHANGED' } });
  const draining = follow();
  await waitFor(() => draining.view.complete);
  const [{ code }] = await Promise.all([server.process.stop(), draining.reading]);
  expect(code).toBe(0);
  expect(draining.view.failure).toMatchObject({ code: 'unavailable', reason: 'SHUTTING_DOWN' });
  expect(server.process.lines().join('')).not.toContain(String(prompt.slice(0, 8)));
});
