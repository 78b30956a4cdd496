/** A seeded source of choices: the same seed gives the same sequence on every machine. */
export type Random = {
  /** A float in [0, 1). */
  unit(): number;
  /** An integer in [0, bound); `bound` is a positive integer. */
  below(bound: number): number;
  /** One element of a non-empty list. */
  pick<T>(items: readonly T[]): T;
  /** A new list with the same elements in another order. */
  shuffled<T>(items: readonly T[]): T[];
  /** A sample of the standard normal distribution (Box-Muller). */
  normal(): number;
};

/**
 * splitmix32: a counter and a mixing function, 32-bit integer arithmetic only, so no platform can differ.
 * Good enough to shuffle sentences and to fill initial weights; not for secrets.
 */
export function createRandom(seed: number): Random {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = state ^ (state >>> 16);
    mixed = Math.imul(mixed, 0x21f0aaad);
    mixed ^= mixed >>> 15;
    mixed = Math.imul(mixed, 0x735a2d97);
    return (mixed ^ (mixed >>> 15)) >>> 0;
  };
  const unit = (): number => next() / 2 ** 32;
  const below = (bound: number): number => Math.floor(unit() * bound);
  return {
    unit,
    below,
    pick: <T>(items: readonly T[]): T => {
      const item = items[below(items.length)];
      if (item === undefined) throw new RangeError('cannot pick from an empty list');
      return item;
    },
    shuffled: <T>(items: readonly T[]): T[] => {
      const result = [...items];
      for (let last = result.length - 1; last > 0; last--) {
        const other = below(last + 1);
        [result[last], result[other]] = [result[other] as T, result[last] as T];
      }
      return result;
    },
    normal: () => Math.sqrt(-2 * Math.log(1 - unit())) * Math.cos(2 * Math.PI * unit()),
  };
}
