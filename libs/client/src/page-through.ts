/** Every item of a paged list. */
export async function* pageThrough<P extends { nextPageToken: string }, T>(
  read: (pageToken: string) => Promise<P>,
  items: (page: P) => readonly T[],
): AsyncGenerator<T> {
  for (let pageToken = ''; ; ) {
    const page = await read(pageToken);
    yield* items(page);
    if (page.nextPageToken === '') return;
    pageToken = page.nextPageToken;
  }
}
