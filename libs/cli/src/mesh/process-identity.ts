import { readFile } from 'node:fs/promises';
import { isAlive } from './child.ts';

/** A process that cannot be taken for another one that got its id later. */
export type ProcessIdentity = {
  pid: number;
  /** When the system says it began, in its own unit; empty where the system does not say. */
  start: string;
};

/** Field 22 of /proc/PID/stat; the second field, in brackets, may hold spaces and brackets itself. A process that has ended and waits to be reaped has none. */
function startOf(stat: string): string {
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return fields[0] === 'Z' ? '' : (fields[19] ?? '');
}

export async function identityOf(pid: number): Promise<ProcessIdentity> {
  return { pid, start: await readFile(`/proc/${pid}/stat`, 'utf8').then(startOf, () => '') };
}

/** Whether that very process is alive. */
export async function isSame(identity: ProcessIdentity | undefined): Promise<boolean> {
  if (identity === undefined || !isAlive(identity.pid)) return false;
  return (await identityOf(identity.pid)).start === identity.start;
}
