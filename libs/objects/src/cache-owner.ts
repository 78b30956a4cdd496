import { createHash } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';

/** How often a process says that it lives, and how long its silence must last for others on another machine to believe it dead. */
const heartbeatMs = 30_000;
const silenceMs = 10 * 60 * 1000;

/** The process a folder in a shared cache belongs to: `<machine>.<pid>.<start>`. Starts tell a process from a later one with its number. */
export type CacheOwner = {
  readonly id: string;
  /** Begins to say that this process lives. */
  open(): Promise<void>;
  /** Whether the process with this id lives, as far as can be known. */
  isAlive(id: string): Promise<boolean>;
  /** Removes everything in `folder` whose name begins with the id of a process that is dead. */
  removeOrphans(folder: string): Promise<void>;
  close(): Promise<void>;
};

const readText = (path: string): string | undefined => {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
};

/** Ticks since boot at which a process started; undefined if there is none. The second field may hold spaces and parentheses. */
function startOf(pid: number | string): string | undefined {
  const text = readText(`/proc/${pid}/stat`);
  return text?.slice(text.lastIndexOf(')') + 2).split(' ')[19];
}

/** Two containers may share a cache and a host name, and have process numbers of their own. */
function machineId(): string {
  let namespace = '';
  try {
    namespace = readlinkSync('/proc/self/ns/pid');
  } catch {
    // Then the host and its boot must do.
  }
  const parts = [hostname(), readText('/proc/sys/kernel/random/boot_id') ?? '', namespace];
  return createHash('sha256').update(parts.join('\n')).digest('hex').slice(0, 12);
}

export function createCacheOwner(folder: string): CacheOwner {
  const machine = machineId();
  const id = `${machine}.${process.pid}.${startOf('self') ?? '0'}`;
  const file = join(folder, id);
  let timer: NodeJS.Timeout | undefined;

  async function isAlive(owner: string): Promise<boolean> {
    const [itsMachine, pid, start] = owner.split('.');
    if (itsMachine === machine) return startOf(pid ?? '') === start;
    const seen = await stat(join(folder, owner)).catch(() => undefined);
    return seen !== undefined && Date.now() - seen.mtimeMs < silenceMs;
  }

  return {
    id,
    isAlive,
    async open() {
      await mkdir(folder, { recursive: true });
      await writeFile(file, '');
      timer = setInterval(() => void writeFile(file, '').catch(() => undefined), heartbeatMs);
      timer.unref();
      for (const owner of await readdir(folder)) {
        if (!(await isAlive(owner))) await rm(join(folder, owner), { force: true });
      }
    },
    async removeOrphans(of) {
      for (const name of await readdir(of)) {
        const owner = name.split('.').slice(-4, -1).join('.');
        if (!(await isAlive(owner))) await rm(join(of, name), { recursive: true, force: true });
      }
    },
    async close() {
      clearInterval(timer);
      await rm(file, { force: true });
    },
  };
}
