import type { Bucket, Entry } from '@medmesh/records';

/** The first record with this digest. Reads the bucket page by page: records are few and small, and names are the usual way. */
export async function findByDigest<T extends { digest: string }>(
  bucket: Bucket<T>,
  digest: string,
  accepts: (value: T) => boolean = () => true,
): Promise<Entry<T> | undefined> {
  for (let pageToken = ''; ; ) {
    const page = await bucket.list('', { pageSize: 1000, pageToken });
    const found = page.entries.find((entry) => entry.value.digest === digest && accepts(entry.value));
    if (found !== undefined || page.nextPageToken === '') return found;
    pageToken = page.nextPageToken;
  }
}
