/** A thing in memory that requests hold while they use it. */
export type Resident<T> = {
  readonly value: T;
  readonly bytes: number;
  readonly users: number;
  readonly lastUsed: number;
};

/** One use of a resident thing; `release` ends it, and a second call does nothing. */
export type Lease<T> = { readonly value: T; release(): void };

type Slot<T> = {
  value: T;
  bytes: number;
  users: number;
  lastUsed: number;
  pinned: boolean;
  /** Set where the last user is waited for. */
  onIdle?: () => void;
};

export type ResidentSet<T> = {
  /** Returns the thing under this key, loading it first if it is not there; concurrent calls load once. */
  acquire(key: string, load: () => Promise<{ value: T; bytes: number }>): Promise<Lease<T>>;
  peek(key: string): Resident<T> | undefined;
  pin(key: string): void;
  /** Nobody gets it any more; unloads when the last user is gone, and resolves then. False if it is not there. */
  drop(key: string): Promise<boolean>;
  /** Unloads the thing if it is there, and nobody uses it or has pinned it. */
  dropUnused(key: string): Promise<void>;
  entries(): [key: string, entry: Resident<T> & { pinned: boolean }][];
  close(): Promise<void>;
};

/**
 * Keeps loaded things by key, at most `maxBytes` and `maxCount` of them: the least recently used one that nobody uses, and that is not pinned, goes
 * first. What is in use is never unloaded, so the bounds may be exceeded for as long as it is.
 */
export function createResidentSet<T>(o: {
  maxBytes: number;
  maxCount: number;
  unload: (value: T) => Promise<void>;
}): ResidentSet<T> {
  const slots = new Map<string, Slot<T>>();
  /** `users` wait for the load: they hold the thing from its first moment. */
  const loading = new Map<string, { users: number; slot: Promise<Slot<T>> }>();
  let clock = 0;

  const unload = async (key: string, slot: Slot<T>) => {
    slots.delete(key);
    await o.unload(slot.value);
  };

  const makeRoom = async () => {
    const total = () => [...slots.values()].reduce((sum, slot) => sum + slot.bytes, 0);
    while (slots.size > o.maxCount || total() > o.maxBytes) {
      const candidates = [...slots]
        .filter(([, slot]) => slot.users === 0 && !slot.pinned)
        .sort(([, a], [, b]) => a.lastUsed - b.lastUsed);
      const oldest = candidates[0];
      if (oldest === undefined) return;
      await unload(...oldest);
    }
  };

  /** Of a use that is counted already. */
  const leaseOf = (slot: Slot<T>): Lease<T> => {
    slot.lastUsed = ++clock;
    let released = false;
    return {
      value: slot.value,
      release() {
        if (released) return;
        released = true;
        slot.users -= 1;
        if (slot.users === 0) slot.onIdle?.();
      },
    };
  };

  const startLoad = (key: string, load: () => Promise<{ value: T; bytes: number }>) => {
    const pending = {
      users: 0,
      slot: load().then(
        ({ value, bytes }) => {
          loading.delete(key);
          const slot: Slot<T> = { value, bytes, users: pending.users, lastUsed: ++clock, pinned: false };
          slots.set(key, slot);
          return slot;
        },
        (error: unknown) => {
          loading.delete(key);
          throw error;
        },
      ),
    };
    loading.set(key, pending);
    return pending;
  };

  return {
    async acquire(key, load) {
      const there = slots.get(key);
      if (there !== undefined) {
        there.users += 1;
        return leaseOf(there);
      }
      const pending = loading.get(key) ?? startLoad(key, load);
      pending.users += 1;
      const lease = leaseOf(await pending.slot);
      await makeRoom();
      return lease;
    },
    peek: (key) => slots.get(key),
    pin(key) {
      const slot = slots.get(key);
      if (slot !== undefined) slot.pinned = true;
    },
    async drop(key) {
      const slot = slots.get(key);
      if (slot === undefined) return false;
      slots.delete(key);
      if (slot.users > 0) {
        await new Promise<void>((resolve) => {
          slot.onIdle = resolve;
        });
      }
      await o.unload(slot.value);
      return true;
    },
    async dropUnused(key) {
      const slot = slots.get(key);
      if (slot !== undefined && slot.users === 0 && !slot.pinned) await unload(key, slot);
    },
    entries: () => [...slots],
    async close() {
      for (const [key, slot] of slots) await unload(key, slot);
    },
  };
}
