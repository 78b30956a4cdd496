import { type Bucket, type Entry, eachEntry } from '@medmesh/records';

/** The first record with this digest. Reads the bucket page by page: records are few and small, and names are the usual way. */
export async function findByDigest<T extends { digest: string }>(
  bucket: Bucket<T>,
  digest: string,
  accepts: (value: T) => boolean = () => true,
): Promise<Entry<T> | undefined> {
  for await (const entry of eachEntry(bucket)) {
    if (entry.value.digest === digest && accepts(entry.value)) return entry;
  }
  return undefined;
}
