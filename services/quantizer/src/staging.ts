import { createHash } from 'node:crypto';
import { mkdir, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Failure, toFailure } from '@medmesh/errors';

/** The folder of a piece of work. The same work finds it again, in whichever process. */
export function stagingFolder(root: string, kind: 'import' | 'derive', identity: readonly unknown[]): string {
  const digest = createHash('sha256').update(JSON.stringify(identity)).digest('hex');
  return join(root, `${kind}-${digest.slice(0, 32)}`);
}

/** What went wrong. If the work was aborted, that is the reason, whatever it made of it. */
export const failureOf = (error: unknown, signal: AbortSignal): Failure =>
  toFailure(signal.aborted ? signal.reason : error);

/** Whether the process stops while the operation goes on elsewhere: then everything stays as it is. */
export const isHandedOn = (failure: Failure): boolean => failure.reason === 'WORKER_STOPPING';

const keptMs = 7 * 24 * 60 * 60 * 1000;

/** Removes what failed imports left for a second try that never came. */
export async function sweepStaging(root: string, now = Date.now()): Promise<void> {
  await mkdir(root, { recursive: true });
  for (const name of await readdir(root)) {
    const path = join(root, name);
    const changed = await stat(path).catch(() => undefined);
    if (/^(import|derive)-/.test(name) && changed !== undefined && now - changed.mtimeMs > keptMs) {
      await rm(path, { recursive: true, force: true });
    }
  }
}
