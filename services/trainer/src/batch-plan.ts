/**
 * Which rows make up which optimizer step: a pure function of row lengths, settings and seed, so that a resumed run goes on with the very rows an
 * uninterrupted one would take.
 */
export type BatchPlan = {
  /** Micro-batches in one pass over the rows. */
  microBatchesPerEpoch: number;
  /** Rows of each micro-batch of optimizer step `step` (0-based). */
  step(step: number): number[][];
  /** Passes over the rows after `steps` optimizer steps. */
  epochAfter(steps: number): number;
};

export type BatchSettings = {
  microBatchRows: number;
  gradientAccumulation: number;
  packedTokens: number;
  keepOrder: boolean;
};

/** Tokens of the longest micro-batch of the first `steps` optimizer steps: what memory must be planned for. */
export function longestMicroBatch(plan: BatchPlan, rowLength: (row: number) => number, steps: number): number {
  let longest = 0;
  for (let step = 0; step < steps; step++)
    for (const rows of plan.step(step))
      longest = Math.max(
        longest,
        rows.reduce((sum, row) => sum + rowLength(row), 0),
      );
  return longest;
}

/** SplitMix64: a small generator whose stream depends on nothing but its seed. */
function splitMix64(seed: bigint): () => bigint {
  let state = BigInt.asUintN(64, seed);
  return () => {
    state = BigInt.asUintN(64, state + 0x9e3779b97f4a7c15n);
    let z = state;
    z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
    z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
    return z ^ (z >> 31n);
  };
}

/** Fisher–Yates. The modulo's bias is below 2^-40 for any number of rows that fits in memory. */
function shuffle<T>(items: T[], random: () => bigint): void {
  for (let i = items.length - 1; i > 0; i--) {
    const j = Number(random() % BigInt(i + 1));
    [items[i], items[j]] = [items[j] as T, items[i] as T];
  }
}

/** First-fit-decreasing: long rows first, each into the first bin with room. Bins are found by their room in O(log n) with a segment tree of maxima. */
export function packFirstFitDecreasing(
  rows: readonly number[],
  length: (row: number) => number,
  capacity: number,
): number[][] {
  const sorted = rows.toSorted((a, b) => length(b) - length(a) || a - b);
  const leafCount = 2 ** Math.ceil(Math.log2(Math.max(1, sorted.length)));
  const room = new Int32Array(2 * leafCount).fill(capacity);
  const bins: number[][] = [];
  for (const row of sorted) {
    const need = Math.min(capacity, length(row));
    let node = 1;
    while (node < leafCount) node = (room[2 * node] ?? 0) >= need ? 2 * node : 2 * node + 1;
    const bin = node - leafCount;
    bins[bin] ??= [];
    bins[bin].push(row);
    room[node] = (room[node] ?? 0) - need;
    for (node >>= 1; node >= 1; node >>= 1) room[node] = Math.max(room[2 * node] ?? 0, room[2 * node + 1] ?? 0);
  }
  return bins.filter((bin) => bin !== undefined);
}

export function createBatchPlan(
  rowCount: number,
  rowLength: (row: number) => number,
  settings: BatchSettings,
  seed: number,
): BatchPlan {
  const inOrder = Array.from({ length: rowCount }, (_, row) => row);

  const epochBatches = (epoch: number): number[][] => {
    const random = splitMix64((BigInt(seed) << 32n) ^ BigInt(epoch));
    if (settings.packedTokens > 0) {
      const bins = packFirstFitDecreasing(inOrder, rowLength, settings.packedTokens);
      if (!settings.keepOrder) shuffle(bins, random);
      return bins;
    }
    const rows = [...inOrder];
    if (!settings.keepOrder) shuffle(rows, random);
    return Array.from({ length: Math.ceil(rowCount / settings.microBatchRows) }, (_, i) =>
      rows.slice(i * settings.microBatchRows, (i + 1) * settings.microBatchRows),
    );
  };

  // Steps are asked for in order, so the newest epochs are enough.
  const cache = new Map<number, number[][]>();
  const batchesOf = (epoch: number): number[][] => {
    let batches = cache.get(epoch);
    if (batches === undefined) {
      batches = epochBatches(epoch);
      cache.set(epoch, batches);
      for (const old of cache.keys()) if (old < epoch - 1) cache.delete(old);
    }
    return batches;
  };

  const microBatchesPerEpoch = batchesOf(0).length;
  return {
    microBatchesPerEpoch,
    step(step) {
      return Array.from({ length: settings.gradientAccumulation }, (_, i) => {
        const index = step * settings.gradientAccumulation + i;
        return batchesOf(Math.floor(index / microBatchesPerEpoch))[index % microBatchesPerEpoch] ?? [];
      });
    },
    epochAfter: (steps) => (steps * settings.gradientAccumulation) / microBatchesPerEpoch,
  };
}
