import { inference, lifecycle } from '@medmesh/proto';
import { waitFor } from '@medmesh/testkit';
import { expect, test } from 'vitest';
import type { LoadedAdapter } from './adapters.ts';
import { type AdminDeps, loadAdapter } from './admin.ts';
import { createResidentSet } from './resident.ts';

const State = inference.LoadState;
const digest = `sha256:${'a'.repeat(64)}`;

/** A load of an adapter that is under way until `finish`. */
async function loading(signal: AbortSignal, pinned = true) {
  const unloaded: string[] = [];
  const { promise, resolve } = Promise.withResolvers<{ value: LoadedAdapter; bytes: number }>();
  const resident = createResidentSet<LoadedAdapter>({
    maxBytes: 100,
    maxCount: 100,
    unload: async ({ record }) => void unloaded.push(record.digest),
  });
  const record = lifecycle.Adapter.fromPartial({ name: 'projects/p/adapters/a', digest });
  const acquire = () => resident.acquire(digest, () => promise);
  const adapters = { resident, resolve: async () => record, acquire };
  const states = loadAdapter({ adapters } as unknown as AdminDeps, { adapter: record.name, pinned }, signal);
  expect((await states.next()).value).toMatchObject({ state: State.RESOLVING });
  const finish = () => resolve({ value: { record } as LoadedAdapter, bytes: 1 });
  return { states, next: states.next(), finish, acquire, resident, unloaded };
}

test('an adapter whose caller leaves before it is ready to be pinned goes again', async () => {
  const caller = new AbortController();
  const { next, finish, resident, unloaded } = await loading(caller.signal);
  caller.abort();
  finish();
  expect(await next).toMatchObject({ done: true });
  await waitFor(async () => unloaded.includes(digest));
  expect(resident.peek(digest)).toBeUndefined();
});

test('it stays where it was not to be pinned, and where somebody else uses it', async () => {
  const caller = new AbortController();
  const cached = await loading(caller.signal, false);
  const used = await loading(caller.signal);
  const user = used.acquire();
  caller.abort();
  for (const { next, finish } of [cached, used]) {
    finish();
    expect(await next).toMatchObject({ done: true });
  }
  await user;
  expect(cached.resident.peek(digest)).toMatchObject({ users: 0 });
  expect(used.resident.peek(digest)).toMatchObject({ users: 1 });
  expect([...cached.unloaded, ...used.unloaded]).toEqual([]);
});
