import { expect, test } from 'vitest';
import { createResidentSet } from './resident.ts';

function setOf(maxBytes: number, maxCount = 100) {
  const unloaded: string[] = [];
  const set = createResidentSet<string>({
    maxBytes,
    maxCount,
    unload(value) {
      unloaded.push(value);
      return Promise.resolve();
    },
  });
  const load = (key: string, bytes = 10) => set.acquire(key, () => Promise.resolve({ value: key, bytes }));
  return { set, load, unloaded };
}

test('concurrent users of one key load it once', async () => {
  const { set } = setOf(100);
  let loads = 0;
  const load = async () => {
    loads += 1;
    await new Promise((resolve) => setTimeout(resolve, 5));
    return { value: 'a', bytes: 1 };
  };
  const leases = await Promise.all([set.acquire('a', load), set.acquire('a', load), set.acquire('a', load)]);
  expect(loads).toBe(1);
  expect(set.peek('a')?.users).toBe(3);
  for (const lease of leases) lease.release();
  expect(set.peek('a')?.users).toBe(0);
});

test('the least recently used one that nobody uses goes first', async () => {
  const { load, unloaded } = setOf(25);
  (await load('a')).release();
  (await load('b')).release();
  (await load('a')).release();
  (await load('c')).release();
  expect(unloaded).toEqual(['b']);
});

test('what is in use or pinned stays, even beyond the bound', async () => {
  const { set, load, unloaded } = setOf(15);
  const held = await load('a');
  (await load('b')).release();
  set.pin('b');
  (await load('c')).release();
  (await load('d')).release();
  expect(unloaded).toEqual(['c']);
  held.release();
  (await load('e')).release();
  expect(unloaded).toContain('a');
  expect(unloaded).not.toContain('b');
});

test('a load that fails leaves nothing and is tried again', async () => {
  const { set, load } = setOf(10);
  await expect(set.acquire('a', () => Promise.reject(new Error('no')))).rejects.toThrow('no');
  expect(set.peek('a')).toBeUndefined();
  expect((await load('a')).value).toBe('a');
});

test('what nobody uses or has pinned can be dropped, and nothing else', async () => {
  const { set, load, unloaded } = setOf(100);
  const used = await load('used');
  for (const key of ['pinned', 'unused']) (await load(key)).release();
  set.pin('pinned');
  for (const key of ['used', 'pinned', 'unused', 'absent']) await set.dropUnused(key);
  expect(unloaded).toEqual(['unused']);
  used.release();
  expect(unloaded).toEqual(['unused']);
});

test('dropping waits for the last user', async () => {
  const { set, load, unloaded } = setOf(100);
  const held = await load('a');
  const dropped = set.drop('a');
  await Promise.resolve();
  expect(unloaded).toEqual([]);
  held.release();
  held.release();
  expect(await dropped).toBe(true);
  expect(unloaded).toEqual(['a']);
  expect(await set.drop('a')).toBe(false);
});

test('what is dropped as soon as it is loaded is still there for those who waited for it', async () => {
  const { set, unloaded } = setOf(100);
  const loaded = Promise.resolve({ value: 'a', bytes: 1 });
  const acquiring = set.acquire('a', () => loaded);
  let dropped: Promise<boolean> | undefined;
  // The moment in which it is in memory, and the one who waited does not hold it yet.
  for (let i = 0; i < 10 && dropped === undefined; i += 1) {
    await Promise.resolve();
    if (set.peek('a') !== undefined) dropped = set.drop('a');
  }
  const lease = await acquiring;
  expect(unloaded).toEqual([]);
  lease.release();
  expect(await dropped).toBe(true);
  expect(unloaded).toEqual(['a']);
});

test('what is asked for while it is dropped is loaded anew, and both are unloaded', async () => {
  const { set, load, unloaded } = setOf(100);
  const old = await load('a');
  const dropped = set.drop('a');
  const fresh = await load('a');
  expect(set.peek('a')?.users).toBe(1);
  fresh.release();
  expect(unloaded).toEqual([]);
  old.release();
  expect(await dropped).toBe(true);
  expect(unloaded).toEqual(['a']);
  expect(await set.drop('a')).toBe(true);
  expect(unloaded).toEqual(['a', 'a']);
});
