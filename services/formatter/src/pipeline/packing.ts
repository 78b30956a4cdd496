/**
 * How many bins of `capacity` tokens first-fit-decreasing needs for rows whose lengths are counted in `histogram`
 * (`histogram[length]` rows of that length, no length above the capacity): longest rows first, each into the first bin
 * that has room.
 */
export function countBins(histogram: ArrayLike<number>, capacity: number): number {
  const bins = createBins();
  for (let length = Math.min(histogram.length - 1, capacity); length > 0; length--) {
    let left = histogram[length]!;
    while (left > 0) {
      const bin = bins.first(length);
      const room = bin < 0 ? capacity : bins.room(bin);
      // Rows of one length go into the first bin with room until it is full: place them at once.
      const placed = Math.min(left, Math.floor(room / length));
      if (bin < 0) bins.add(room - placed * length);
      else bins.set(bin, room - placed * length);
      left -= placed;
    }
  }
  return bins.count();
}

/** Bins in order, with the first that has enough room found in logarithmic time: a tree of the most room below a node. */
function createBins() {
  let leaves = 1024;
  let most = new Int32Array(2 * leaves);
  let count = 0;
  const set = (bin: number, room: number): void => {
    let node = leaves + bin;
    most[node] = room;
    for (node >>= 1; node >= 1; node >>= 1) most[node] = Math.max(most[2 * node]!, most[2 * node + 1]!);
  };
  const grow = (): void => {
    const larger = new Int32Array(4 * leaves);
    larger.set(most.subarray(leaves, 2 * leaves), 2 * leaves);
    leaves *= 2;
    most = larger;
    for (let node = leaves - 1; node >= 1; node--) most[node] = Math.max(most[2 * node]!, most[2 * node + 1]!);
  };
  return {
    count: () => count,
    room: (bin: number): number => most[leaves + bin]!,
    set,
    add(room: number): void {
      if (count === leaves) grow();
      set(count, room);
      count++;
    },
    /** The first bin with at least so much room, or -1. */
    first(length: number): number {
      if (most[1]! < length) return -1;
      let node = 1;
      while (node < leaves) node = most[2 * node]! >= length ? 2 * node : 2 * node + 1;
      return node - leaves;
    },
  };
}
