/** The items of several streams in the order in which they come. Leaving early ends all of them. */
export async function* mergeStreams<T>(streams: readonly AsyncGenerator<T>[]): AsyncGenerator<T> {
  const next = new Map(streams.map((stream, i) => [i, stream.next().then((result) => ({ i, result }))]));
  try {
    while (next.size > 0) {
      const { i, result } = await Promise.race(next.values());
      const stream = streams[i];
      if (result.done || stream === undefined) {
        next.delete(i);
        continue;
      }
      next.set(
        i,
        stream.next().then((following) => ({ i, result: following })),
      );
      yield result.value;
    }
  } finally {
    for (const pending of next.values()) pending.catch(() => undefined);
    await Promise.allSettled(streams.map((stream) => stream.return(undefined)));
  }
}
