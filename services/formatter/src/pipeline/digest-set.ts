/**
 * A set of 16-byte digests in flat memory: 16 bytes a slot, at most three quarters full. A million digests take 32 MiB, or
 * 48 MiB while it grows from half that size.
 */
export type DigestSet = {
  /** Adds a digest; false if it was there. */
  add(digest: Buffer): boolean;
  readonly size: number;
};

export function createDigestSet(): DigestSet {
  let slots = new Uint32Array(4 * 1024);
  let size = 0;

  // The digest's own bits are as good as a hash. All-zero means free; that one digest is counted apart.
  let hasZero = false;
  const place = (table: Uint32Array, a: number, b: number, c: number, d: number): boolean => {
    const mask = table.length / 4 - 1;
    for (let i = a & mask; ; i = (i + 1) & mask) {
      const at = 4 * i;
      const free = (table[at]! | table[at + 1]! | table[at + 2]! | table[at + 3]!) === 0;
      if (free) {
        table[at] = a;
        table[at + 1] = b;
        table[at + 2] = c;
        table[at + 3] = d;
        return true;
      }
      if (table[at] === a && table[at + 1] === b && table[at + 2] === c && table[at + 3] === d) return false;
    }
  };
  const grow = (): void => {
    const larger = new Uint32Array(slots.length * 2);
    for (let at = 0; at < slots.length; at += 4) {
      const [a, b, c, d] = [slots[at]!, slots[at + 1]!, slots[at + 2]!, slots[at + 3]!];
      if ((a | b | c | d) !== 0) place(larger, a, b, c, d);
    }
    slots = larger;
  };

  return {
    add(digest) {
      const a = digest.readUInt32LE(0);
      const b = digest.readUInt32LE(4);
      const c = digest.readUInt32LE(8);
      const d = digest.readUInt32LE(12);
      if ((a | b | c | d) === 0) {
        const fresh = !hasZero;
        hasZero = true;
        size += Number(fresh);
        return fresh;
      }
      if (size + 1 > (slots.length / 4) * 0.75) grow();
      const fresh = place(slots, a, b, c, d);
      size += Number(fresh);
      return fresh;
    },
    get size() {
      return size;
    },
  };
}
