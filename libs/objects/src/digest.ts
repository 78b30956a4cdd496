import { createHash, type Hash } from 'node:crypto';
import { Failure } from '@medmesh/errors';

/** The address of a blob: `sha256:` and 64 hex digits of its content. */
export type Digest = `sha256:${string}`;

const pattern = /^sha256:[0-9a-f]{64}$/;

export const isDigest = (text: string): text is Digest => pattern.test(text);

/** Failure `invalid_argument` DIGEST_INVALID unless the text is a digest. Checked before it becomes part of a path or key. */
export function checkDigest(text: string): Digest {
  if (isDigest(text)) return text;
  const shown = JSON.stringify(text.slice(0, 80));
  throw new Failure('invalid_argument', `${shown} is not a digest; it must be sha256: and 64 hex digits`, {
    reason: 'DIGEST_INVALID',
  });
}

/** Where a blob lives, in every home: `blobs/sha256/ab/abcd…`. */
export function blobKey(text: string): string {
  const hex = checkDigest(text).slice('sha256:'.length);
  return `blobs/sha256/${hex.slice(0, 2)}/${hex}`;
}

export const newHash = (): Hash => createHash('sha256');

export const digestOf = (hash: Hash): Digest => `sha256:${hash.digest('hex')}`;

export const digestOfBytes = (bytes: Uint8Array): Digest => digestOf(newHash().update(bytes));

/** Failure `data_loss` DIGEST_MISMATCH unless what was received is what was promised. */
export function checkExpected(expected: string | undefined, seen: Digest): void {
  if (expected === undefined || expected === seen) return;
  throw new Failure('data_loss', `the content is ${seen}, but ${expected} was expected; nothing was stored`, {
    reason: 'DIGEST_MISMATCH',
    metadata: { expected, seen },
  });
}

/** A blob whose content is not what its name says. */
export const corrupt = (expected: string, seen: string): Failure =>
  new Failure('data_loss', `the blob ${expected} is damaged: its content is ${seen}`, {
    reason: 'ARTIFACT_CORRUPT',
    metadata: { digest: expected, seen },
  });

export const blobNotFound = (digest: string): Failure =>
  new Failure('not_found', `there is no blob ${digest}`, { reason: 'BLOB_NOT_FOUND', metadata: { digest } });
