import { open, stat } from 'node:fs/promises';
import { Failure } from '@medmesh/errors';
import { pathFailure } from '../../path-failure.ts';

/** An input that is refused: exit code 2. */
export const refusal = (message: string, reason = 'INPUT_INVALID'): Failure =>
  new Failure('invalid_argument', message, { reason });

/** A system error about a path, as a refusal; anything else as it is. */
export const pathRefusal = (path: string, error: unknown): unknown => pathFailure(error, path) ?? error;

/** `file`, `folder`, or undefined when nothing is there. */
export async function kindOf(path: string): Promise<'file' | 'folder' | 'other' | undefined> {
  try {
    const found = await stat(path);
    return found.isDirectory() ? 'folder' : found.isFile() ? 'file' : 'other';
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw pathRefusal(path, error);
  }
}

/** Refuses anything but an existing file that is no pickle. */
export async function checkInputFile(path: string): Promise<void> {
  const kind = await kindOf(path);
  if (kind === undefined) throw refusal(`${path} does not exist`, 'PATH_UNUSABLE');
  if (kind !== 'file') throw refusal(`${path} is ${kind === 'folder' ? 'a folder' : 'no plain file'}, not a file`);
  const start = Buffer.alloc(4);
  try {
    await using file = await open(path);
    await file.read(start, 0, 4, 0);
  } catch (error) {
    throw pathRefusal(path, error);
  }
  // Pickle protocols 2 to 5, and the zip archive that torch.save wraps around one.
  const isPickle = start[0] === 0x80 && start[1] !== undefined && start[1] >= 2 && start[1] <= 5;
  if (isPickle || start.equals(Buffer.from('PK\x03\x04', 'latin1')))
    throw refusal(
      `${path} is a pickle, which can run code when it is opened, so it is never read; convert it to safetensors`,
      'PICKLE_REFUSED',
    );
}

/** Refuses anything but an existing folder with `marker` in it; `what` says what it should have been. */
export async function checkInputFolder(path: string, marker: string, what: string): Promise<void> {
  const kind = await kindOf(path);
  if (kind === undefined) throw refusal(`${path} does not exist; ${what} is wanted`, 'PATH_UNUSABLE');
  if (kind !== 'folder') throw refusal(`${path} is a file; ${what} is wanted`);
  if ((await kindOf(`${path}/${marker}`)) !== 'file') throw refusal(`${path} has no ${marker}; ${what} is wanted`);
}
