/** Tokens a second over the last ten seconds. */
export function createTokenRate(now: () => number): { add(count: number): void; rate(): number } {
  const windowMs = 10_000;
  const bucketMs = 500;
  const buckets = new Map<number, number>();
  const prune = () => {
    const oldest = Math.floor((now() - windowMs) / bucketMs);
    for (const key of buckets.keys()) if (key <= oldest) buckets.delete(key);
  };
  return {
    add(count) {
      prune();
      const key = Math.floor(now() / bucketMs);
      buckets.set(key, (buckets.get(key) ?? 0) + count);
    },
    rate() {
      prune();
      return [...buckets.values()].reduce((sum, count) => sum + count, 0) / (windowMs / 1000);
    },
  };
}
