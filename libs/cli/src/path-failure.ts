import { Failure } from '@medmesh/errors';

/** The system's word for why a file cannot be used. */
const words: Readonly<Record<string, string>> = {
  ENOENT: 'does not exist',
  ENOTDIR: 'does not exist: a part of its path is a file',
  EACCES: 'may not be read or written by this user',
  EPERM: 'may not be changed by this user',
  EROFS: 'is on a file system that cannot be written to',
  EISDIR: 'is a folder, not a file',
  EEXIST: 'exists',
  ENOTEMPTY: 'is not empty',
  ELOOP: 'is a link that leads to itself',
  ENAMETOOLONG: 'has too long a name',
};

/** What the system says about a path that a person named, as that person's to mend; undefined for any other error. */
export function pathFailure(error: unknown, path?: string): Failure | undefined {
  if (!(error instanceof Error && 'code' in error)) return undefined;
  const why = words[String(error.code)];
  const named = path ?? ('path' in error ? String(error.path) : undefined);
  if (why === undefined || named === undefined) return undefined;
  return new Failure('invalid_argument', `${named} ${why}`, { reason: 'PATH_UNUSABLE', cause: error });
}
