import { Failure } from '@medmesh/errors';
import { decodeToken, encodeToken } from '@medmesh/events';

const key = /^[-=\w]+(\.[-=\w]+)*$/;

/**
 * The key of a resource name: `projects/p/models/qwen2.5-7b` → `projects.p.models.qwen2=2E5-7b`. Path segments become the key's tokens, so that the
 * broker itself can filter by parent; whatever a token may not hold is escaped. A slash at the end, as in the parent `projects/p/models/`, is dropped.
 * @throws Failure `invalid_argument` if a segment is empty.
 */
export function keyOf(resourceName: string): string {
  return resourceName.replace(/\/$/, '').split('/').map(encodeToken).join('.');
}

/** The resource name that `keyOf` made this key of. */
export function nameOf(recordKey: string): string {
  return recordKey.split('.').map(decodeToken).join('/');
}

/** Refuses a resource name where a key belongs: a mistake of the caller's code, not of its user. */
export function checkKey(recordKey: string): void {
  if (!key.test(recordKey)) {
    throw new Failure('internal', 'a record was asked for by something that is not a key; pass keyOf(name)', {
      reason: 'RECORD_KEY_INVALID',
    });
  }
}
