import { setTimeout as sleep } from 'node:timers/promises';
import { type Child, lastWords, signalProcess } from './child.ts';

/** A process that is started again when it ends by itself. */
export type Supervised = {
  readonly name: string;
  readonly logPath: string;
  /** The process that runs now. */
  readonly pid: number;
  /** Resolves with its last words when it has ended too often to be started again. */
  readonly failed: Promise<{ name: string; words: string }>;
  /** SIGTERM, and SIGKILL if it takes too long; resolves when it is gone. */
  stop(): Promise<void>;
};

/** So many ends within the window are a fault that starting again does not mend. */
const maxRestarts = 5;
const windowMs = 60_000;
const firstPauseMs = 200;
const stopTimeoutMs = 30_000;

/** Starts a process and keeps it alive. `start` is called for every life; `onRestart` tells the new process id. */
export function supervise(start: () => Child, onRestart: (child: Child) => void): Supervised {
  let child = start();
  let stopping = false;
  const ends: number[] = [];
  const { promise: failed, resolve: fail } = Promise.withResolvers<{ name: string; words: string }>();

  const watch = async () => {
    for (;;) {
      await child.exited;
      if (stopping) return;
      const now = Date.now();
      ends.push(now);
      const recent = ends.filter((time) => now - time < windowMs);
      if (recent.length > maxRestarts) {
        fail({ name: child.name, words: lastWords(child.logPath) });
        return;
      }
      await sleep(firstPauseMs * 2 ** (recent.length - 1));
      if (stopping) return;
      child = start();
      onRestart(child);
    }
  };
  const watching = watch();

  return {
    name: child.name,
    logPath: child.logPath,
    get pid() {
      return child.pid;
    },
    failed,
    async stop() {
      stopping = true;
      signalProcess(child.pid, 'SIGTERM');
      const killer = setTimeout(() => signalProcess(child.pid, 'SIGKILL'), stopTimeoutMs);
      await child.exited;
      clearTimeout(killer);
      await watching;
    },
  };
}
