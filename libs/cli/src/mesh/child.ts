import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';

export type Child = {
  name: string;
  pid: number;
  exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  logPath: string;
  /** Whether it has ended. */
  ended(): boolean;
};

/**
 * Starts a process in a group of its own, so that Ctrl-C in the terminal reaches only the one that started it, which then stops the others in order.
 * Its output goes to a log file.
 */
export function startChild(o: {
  name: string;
  command: string;
  args: string[];
  env: NodeJS.ProcessEnv;
  logPath: string;
  cwd: string;
}): Child {
  const log = openSync(o.logPath, 'a');
  let process_: ChildProcess;
  try {
    process_ = spawn(o.command, o.args, { cwd: o.cwd, env: o.env, stdio: ['ignore', log, log], detached: true });
  } finally {
    closeSync(log);
  }
  const exited = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
    process_.once('exit', (code, signal) => resolve({ code, signal }));
    process_.once('error', () => resolve({ code: 127, signal: null }));
  });
  return {
    name: o.name,
    pid: process_.pid ?? 0,
    exited,
    logPath: o.logPath,
    ended: () => process_.exitCode !== null || process_.signalCode !== null || process_.pid === undefined,
  };
}

/** Whether a process with this id is there. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

export function signalProcess(pid: number, signal: NodeJS.Signals): void {
  // A program that could not be started has the id 0, which to the system means this process's whole group.
  if (pid === 0) return;
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** The last meaningful line of a log: what a process said before it ended. Its own error message if the line is one of our JSON lines. */
export function lastWords(logPath: string): string {
  const lines = readFileSync(logPath, 'utf8').trimEnd().split('\n').slice(-40).reverse();
  for (const line of lines) {
    try {
      const entry = JSON.parse(line) as { level?: unknown; msg?: unknown };
      if ((entry.level === 'fatal' || entry.level === 'error') && typeof entry.msg === 'string') return entry.msg;
    } catch {
      if (line.trim() !== '') return line.trim();
    }
  }
  return 'it said nothing';
}
