/** A set of whole numbers from 1 to 2^53 - 1 that are as good as random, in flat memory: 8 bytes a slot, at most three quarters full. */
export type NumberSet = { add(value: number): void; has(value: number): boolean; readonly size: number };

export function createNumberSet(): NumberSet {
  let slots = new Float64Array(1024);
  let size = 0;
  /** Where the value is, or the free slot where it belongs. */
  const find = (table: Float64Array, value: number): number => {
    const mask = table.length - 1;
    let at = value & mask;
    while (table[at] !== 0 && table[at] !== value) at = (at + 1) & mask;
    return at;
  };
  return {
    add(value) {
      if (size + 1 > slots.length * 0.75) {
        const larger = new Float64Array(2 * slots.length);
        for (const held of slots) if (held !== 0) larger[find(larger, held)] = held;
        slots = larger;
      }
      const at = find(slots, value);
      if (slots[at] !== 0) return;
      slots[at] = value;
      size += 1;
    },
    has: (value) => slots[find(slots, value)] !== 0,
    get size() {
      return size;
    },
  };
}
