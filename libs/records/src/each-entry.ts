import type { Bucket, Entry } from './bucket.ts';

const pageSize = 1000;

/** Every record below a prefix, by key, read page by page. The empty prefix gives all of the bucket. */
export async function* eachEntry<T>(bucket: Pick<Bucket<T>, 'list'>, prefix = ''): AsyncGenerator<Entry<T>> {
  for (let pageToken = ''; ; ) {
    const page = await bucket.list(prefix, { pageSize, pageToken });
    yield* page.entries;
    if (page.nextPageToken === '') return;
    pageToken = page.nextPageToken;
  }
}
