import { rmSync } from 'node:fs';

// What a test run leaves behind if nobody stops it: process groups and folders. Ended when this process exits, however the test went.
const groups = new Set<number>();
const folders = new Set<string>();
let installed = false;

function clean(): void {
  for (const group of groups) signalGroup(group, 'SIGKILL');
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
}

function install(): void {
  if (installed) return;
  installed = true;
  process.on('exit', clean);
  // vitest ends its workers by a signal, which skips 'exit'. The signal then does what it would have done.
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    process.once(signal, () => {
      clean();
      process.kill(process.pid, signal);
    });
  }
}

/** Sends a signal to every process of a group; false if none is left. */
export function signalGroup(group: number, signal: NodeJS.Signals): boolean {
  try {
    process.kill(-group, signal);
    return true;
  } catch {
    return false;
  }
}

/** Kills the group at exit unless it is forgotten before. */
export function killAtExit(group: number): { forget(): void } {
  install();
  groups.add(group);
  return { forget: () => groups.delete(group) };
}

/** Removes the folder at exit. */
export function removeAtExit(folder: string): void {
  install();
  folders.add(folder);
}
