import { mkdtempSync, realpathSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { removeAtExit } from './cleanup.ts';

/** A new empty folder, removed with all it holds when the process exits. */
export function tempDir(name = 'test'): string {
  const folder = mkdtempSync(join(realpathSync(tmpdir()), `medmesh-${name}-`));
  removeAtExit(folder);
  return folder;
}
