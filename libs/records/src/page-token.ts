import { createHash } from 'node:crypto';
import { Failure, invalidField } from '@medmesh/errors';

const defaultPageSize = 50;
const largestPageSize = 1000;

/** 0 means the default (50); more than 1000 is taken as 1000. Failure `invalid_argument` if negative. */
export function checkPageSize(pageSize: number): number {
  if (!Number.isInteger(pageSize) || pageSize < 0)
    throw invalidField('page_size', `${pageSize} is negative; use 0 to ${largestPageSize}`);
  return pageSize === 0 ? defaultPageSize : Math.min(pageSize, largestPageSize);
}

/** What a list runs over. A token of one list is refused by another. */
export type ListScope = { bucket: string; prefix: string; scope: string };

const scopeDigest = (list: ListScope): string =>
  createHash('sha256')
    .update(JSON.stringify([list.bucket, list.prefix, list.scope]))
    .digest('base64url')
    .slice(0, 16);

/** A token that continues after `key`. A key, not a position: records that come and go in between shift nothing. */
export function makePageToken(list: ListScope, key: string): string {
  return Buffer.from(JSON.stringify([1, scopeDigest(list), key])).toString('base64url');
}

/** The key to continue after. Failure `invalid_argument` PAGE_TOKEN_MISMATCH for a token of another list, or that nobody gave out. */
export function readPageToken(list: ListScope, token: string): string {
  try {
    const parsed: unknown = JSON.parse(Buffer.from(token, 'base64url').toString());
    if (Array.isArray(parsed) && parsed.length === 3) {
      const [version, digest, key] = parsed as unknown[];
      if (version === 1 && digest === scopeDigest(list) && typeof key === 'string') return key;
    }
  } catch {
    // Falls through: not even a token's shape.
  }
  const description =
    'not a token of this list; repeat the request that gave it, with the same parent and filter, or start without a token';
  throw new Failure('invalid_argument', `page_token: ${description}`, {
    reason: 'PAGE_TOKEN_MISMATCH',
    fields: [{ field: 'page_token', description }],
  });
}
