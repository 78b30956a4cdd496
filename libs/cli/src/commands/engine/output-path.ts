import { mkdtemp, readdir, realpath, rmdir, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { Failure } from '@medmesh/errors';
import { kindOf, pathRefusal, refusal } from './input-file.ts';

/** What a result may not replace or hold: the folders it is made of. */
type OutputRules = { force: boolean; inputs: readonly string[] };

/** The path with its links followed as far as it exists. */
async function real(path: string): Promise<string> {
  const full = resolve(path);
  try {
    return await realpath(full);
  } catch {
    const parent = dirname(full);
    return parent === full ? full : join(await real(parent), basename(full));
  }
}

async function refuseInput(path: string, inputs: readonly string[]): Promise<void> {
  const out = await real(path);
  for (const input of inputs) {
    const source = await real(input);
    if (source === out || source.startsWith(`${out}${sep}`))
      throw refusal(`--out ${path} would replace the input ${input}; choose another place`, 'OUTPUT_IS_INPUT');
  }
}

/** Refuses unless something can be made in the nearest folder above that exists. */
async function checkWritable(path: string, folderMustExist: boolean): Promise<void> {
  let parent = dirname(resolve(path));
  if (folderMustExist && (await kindOf(parent)) === undefined)
    throw refusal(`${parent}, the folder of ${path}, does not exist`, 'PATH_UNUSABLE');
  while ((await kindOf(parent)) === undefined) parent = dirname(parent);
  if ((await kindOf(parent)) !== 'folder') throw refusal(`${parent} is a file, so ${path} cannot be made`);
  // Permissions do not tell all: root may write everywhere but on a read-only file system or in /proc.
  try {
    await rmdir(await mkdtemp(join(parent, '.medmesh-')));
  } catch (error) {
    const reason = pathRefusal(parent, error);
    throw reason instanceof Failure
      ? refusal(`nothing can be written in ${parent}, the folder of ${path}`, 'PATH_UNUSABLE')
      : reason;
  }
}

/** Refuses an output file before any work: taken, without a folder, or not to be written. An empty file is not in the way. */
export async function checkOutputFile(path: string, { force, inputs }: OutputRules): Promise<void> {
  const kind = await kindOf(path);
  if (kind === 'folder') throw refusal(`${path} is a folder; name a file`, 'OUTPUT_EXISTS');
  if (kind === 'other') throw refusal(`${path} is no plain file; the result is renamed into its place`);
  if (kind === 'file') {
    if (!force && (await stat(path)).size > 0)
      throw refusal(`${path} exists; add --force to replace it, or choose another name`, 'OUTPUT_EXISTS');
    await refuseInput(path, inputs);
  }
  await checkWritable(path, true);
}

/**
 * Refuses an output folder before any work. An empty folder is not in the way. With `force` an earlier result may be replaced: a folder
 * that has `marker` and no folder inside, so that a mistyped path cannot take a home with it.
 */
export async function checkOutputFolder(path: string, marker: string, { force, inputs }: OutputRules): Promise<void> {
  const kind = await kindOf(path);
  if (kind !== undefined && kind !== 'folder') throw refusal(`${path} is a file; name a folder`, 'OUTPUT_EXISTS');
  if (kind === 'folder') {
    const entries = await readdir(path, { withFileTypes: true }).catch((error: unknown) => {
      throw pathRefusal(path, error);
    });
    const earlier =
      entries.some((entry) => entry.isFile() && entry.name === marker) && !entries.some((entry) => entry.isDirectory());
    if (entries.length > 0 && !force)
      throw refusal(`${path} exists and is not empty; add --force to replace it, or choose another`, 'OUTPUT_EXISTS');
    await refuseInput(path, inputs);
    if (entries.length > 0 && !earlier)
      throw refusal(
        `${path} is no earlier result (a folder of files with ${marker}), so --force does not replace it`,
        'OUTPUT_EXISTS',
      );
  }
  await checkWritable(path, false);
}
