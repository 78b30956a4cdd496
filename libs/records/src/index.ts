export type { Bucket, Codec, Deleted, Entry, ListOptions, WriteOptions } from './bucket.ts';
export { eachEntry } from './each-entry.ts';
export { type Claim, type IdempotentOptions, idempotent } from './idempotent.ts';
export { keyOf, nameOf } from './keys.ts';
export {
  checkEtag,
  checkResourceId,
  etagOf,
  formatName,
  type NameParts,
  type NameVariables,
  parseName,
} from './names.ts';
export { type BucketOptions, openRecords, type Records } from './open-records.ts';
export { checkPageSize } from './page-token.ts';
