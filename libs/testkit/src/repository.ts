import { existsSync } from 'node:fs';
import { delimiter, join, resolve } from 'node:path';

/** The root of this repository. */
export const repositoryRoot = resolve(import.meta.dirname, '../../..');

/** Finds a program in the repository's own .cache/bin, then on the PATH; null if it is in neither. */
export function findProgram(name: string): string | null {
  const folders = [
    join(repositoryRoot, '.cache/bin'),
    ...(process.env['PATH'] ?? '').split(delimiter),
    '/usr/sbin',
    '/sbin',
  ];
  for (const folder of folders) {
    const program = join(folder, name);
    if (folder !== '' && existsSync(program)) return program;
  }
  return null;
}

/**
 * The folder with the real inputs (tokenizers, medical rows, small weights): $MEDMESH_SHARED, else `shared` beside the repository.
 * Null where there is none; tests that need them then skip, saying `sharedInputsMissing`.
 */
export function sharedInputs(): string | null {
  const folder = process.env['MEDMESH_SHARED'] ?? join(repositoryRoot, '..', 'shared');
  return existsSync(join(folder, 'data')) ? resolve(folder) : null;
}

/** Why a test of real inputs is skipped. */
export const sharedInputsMissing = 'the real inputs are not here: set MEDMESH_SHARED to their folder';
