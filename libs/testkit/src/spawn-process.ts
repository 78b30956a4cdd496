import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { killAtExit, signalGroup } from './cleanup.ts';

export type SpawnOptions = {
  command: string;
  args?: readonly string[];
  cwd?: string;
  /** Added to this process's environment; undefined removes a variable. */
  env?: Record<string, string | undefined>;
  /** The start is complete once a line of stdout or stderr matches. Without it, once the process exists. */
  ready?: RegExp;
  readyTimeoutMs?: number;
  /** How long `stop` waits between SIGTERM and SIGKILL. */
  stopTimeoutMs?: number;
};

export type Exit = { code: number | null; signal: NodeJS.Signals | null };

export type RunningProcess = {
  readonly pid: number;
  /** The match of `ready`, with its groups. */
  readonly ready: RegExpMatchArray | null;
  /** Settles when the process has ended and its output is complete. */
  readonly exited: Promise<Exit>;
  stdout(): string;
  stderr(): string;
  /** Both streams' lines in the order they came. */
  lines(): readonly string[];
  /** Resolves with the first line, past or future, that matches. Rejects when the process ends or the time is over. */
  waitForLine(pattern: RegExp, timeoutMs?: number): Promise<RegExpMatchArray>;
  /** Sends a signal to the process alone. */
  signal(signal: NodeJS.Signals): void;
  /** SIGTERM, and SIGKILL to its whole group if that does not end it in time. */
  stop(): Promise<Exit>;
  /** SIGKILL to its whole group. */
  kill(): Promise<Exit>;
};

/** Starts a program in a process group of its own, so that ending it ends what it started too. It never outlives this process. */
export async function spawnProcess(options: SpawnOptions): Promise<RunningProcess> {
  const { command, args = [], readyTimeoutMs = 60_000, stopTimeoutMs = 30_000 } = options;
  const shown = [command, ...args].join(' ');
  const child: ChildProcess = spawn(command, args, {
    cwd: options.cwd,
    env: { ...process.env, ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });

  const exited = new Promise<Exit>((resolve) => {
    child.once('close', (code, signal) => resolve({ code, signal }));
  });
  await new Promise<void>((resolve, reject) => {
    child.once('spawn', resolve);
    child.once('error', (cause) => reject(new Error(`cannot start ${command}: ${cause.message}`, { cause })));
  });
  const pid = child.pid!;
  const guard = killAtExit(pid);

  const text = { stdout: '', stderr: '' };
  const lines: string[] = [];
  const listeners = new Set<(line: string) => void>();
  for (const name of ['stdout', 'stderr'] as const) {
    const stream = child[name]!;
    stream.setEncoding('utf8');
    stream.on('data', (chunk: string) => {
      text[name] += chunk;
    });
    createInterface({ input: stream }).on('line', (line) => {
      lines.push(line);
      for (const listener of listeners) listener(line);
    });
  }

  // Whatever it started and did not wait for goes with it; else that would keep the output open.
  child.once('exit', () => void signalGroup(pid, 'SIGKILL'));
  let ended: Exit | undefined;
  void exited.then((exit) => {
    ended = exit;
    guard.forget();
  });

  const tail = () => lines.slice(-20).join('\n');
  const describeExit = ({ code, signal }: Exit) => (signal ? `was ended by ${signal}` : `exited with ${code}`);

  async function waitForLine(pattern: RegExp, timeoutMs = 30_000): Promise<RegExpMatchArray> {
    for (const line of lines) {
      const match = line.match(pattern);
      if (match) return match;
    }
    return new Promise((resolve, reject) => {
      const finish = (act: () => void) => {
        clearTimeout(timer);
        listeners.delete(listener);
        act();
      };
      const listener = (line: string) => {
        const match = line.match(pattern);
        if (match) finish(() => resolve(match));
      };
      const timer = setTimeout(
        () => finish(() => reject(new Error(`${shown}: no line matched ${pattern} in ${timeoutMs} ms:\n${tail()}`))),
        timeoutMs,
      );
      listeners.add(listener);
      void exited.then((exit) =>
        finish(() => reject(new Error(`${shown} ${describeExit(exit)} before a line matched ${pattern}:\n${tail()}`))),
      );
    });
  }

  async function kill(): Promise<Exit> {
    if (!ended) signalGroup(pid, 'SIGKILL');
    return exited;
  }

  async function stop(): Promise<Exit> {
    if (ended) return ended;
    child.kill('SIGTERM');
    const cancel = new AbortController();
    const late = sleep(stopTimeoutMs, 'late' as const, { signal: cancel.signal }).catch(() => 'late' as const);
    if ((await Promise.race([exited, late])) === 'late') signalGroup(pid, 'SIGKILL');
    cancel.abort();
    return exited;
  }

  let ready: RegExpMatchArray | null = null;
  if (options.ready) {
    try {
      ready = await waitForLine(options.ready, readyTimeoutMs);
    } catch (error) {
      await kill();
      throw error;
    }
  }
  return {
    pid,
    ready,
    exited,
    stdout: () => text.stdout,
    stderr: () => text.stderr,
    lines: () => lines,
    waitForLine,
    signal: (signal) => void child.kill(signal),
    stop,
    kill,
  };
}

/** Runs a program to its end and returns its stdout. Throws with its output if it fails. */
export async function runProcess(
  options: Omit<SpawnOptions, 'ready' | 'readyTimeoutMs'> & { timeoutMs?: number },
): Promise<string> {
  const running = await spawnProcess(options);
  const { timeoutMs = 60_000 } = options;
  const timer = setTimeout(() => void running.kill(), timeoutMs);
  const { code, signal } = await running.exited;
  clearTimeout(timer);
  if (code === 0) return running.stdout();
  const how = signal ? `was ended by ${signal}` : `exited with ${code}`;
  throw new Error(
    `${[options.command, ...(options.args ?? [])].join(' ')} ${how}:\n${running.lines().slice(-20).join('\n')}`,
  );
}
