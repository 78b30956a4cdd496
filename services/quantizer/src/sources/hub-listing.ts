import { checkPath } from '@medmesh/objects';
import { invalidAnswer } from './hub-http.ts';
import type { SourceFile } from './model-source.ts';

export const maxListedFiles = 100_000;

/** A hub's list of files, or Failure `data_loss` HUB_ANSWER_INVALID: no path leaves the folder or occurs twice. */
export function checkListing(host: string, files: readonly SourceFile[]): readonly SourceFile[] {
  const seen = new Set<string>();
  for (const { path } of files) {
    try {
      checkPath(path);
    } catch (cause) {
      throw invalidAnswer(host, 'lists a file whose path leads out of its folder or is not plain', cause);
    }
    if (seen.has(path)) throw invalidAnswer(host, 'lists a file twice');
    seen.add(path);
  }
  return files;
}
