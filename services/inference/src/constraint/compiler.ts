import { Worker } from 'node:worker_threads';
import type { ByteAutomaton } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import type { CompileTask } from './compile-worker.ts';
import type { Rule } from './parse-constraint.ts';

export type ConstraintCompiler = {
  compile(rule: Rule, afterReasoning: boolean, signal: AbortSignal): Promise<ByteAutomaton>;
  close(): Promise<void>;
};

/** Longest time and largest memory that one constraint may take. The counts in pattern.ts are met long before. */
const timeoutMs = 5_000;
const memoryMb = 512;

type Answer = { id: number; automaton?: ByteAutomaton; refused?: string };

const invalid = (message: string) => new Failure('invalid_argument', message, { reason: 'CONSTRAINT_INVALID' });

/**
 * Compiles constraints one after the other on a thread of their own, so that a hostile one costs neither the event loop nor the process: it is ended
 * after `timeoutMs` or `memoryMb`, and the next one gets a new thread.
 */
export function createConstraintCompiler(): ConstraintCompiler {
  let worker: Worker | undefined;
  let tail: Promise<unknown> = Promise.resolve();
  let nextId = 0;

  const start = () => {
    const started = new Worker(new URL('compile-worker.ts', import.meta.url), {
      resourceLimits: { maxOldGenerationSizeMb: memoryMb },
    });
    started.unref();
    return started;
  };

  const run = (rule: Rule, afterReasoning: boolean): Promise<ByteAutomaton> =>
    new Promise((resolve, reject) => {
      worker ??= start();
      const used = worker;
      const task: CompileTask = { id: nextId++, rule, afterReasoning };
      const finish = (act: () => void) => {
        clearTimeout(timer);
        used.off('message', onMessage);
        used.off('error', onEnd);
        used.off('exit', onEnd);
        act();
      };
      const discard = (error: Failure) => {
        worker = undefined;
        finish(() => reject(error));
        used.on('error', () => undefined);
        void used.terminate();
      };
      const onMessage = ({ id, automaton, refused }: Answer) => {
        if (id !== task.id) return;
        if (automaton !== undefined) finish(() => resolve(automaton));
        else if (refused !== undefined) finish(() => reject(invalid(refused)));
        else
          finish(() => reject(new Failure('internal', 'a constraint could not be compiled', { reason: 'UNFORESEEN' })));
      };
      const onEnd = () => discard(invalid(`constraint: takes more than ${memoryMb} MiB to prepare; make it simpler`));
      const timer = setTimeout(
        () => discard(invalid(`constraint: takes more than ${timeoutMs} ms to prepare; make it simpler`)),
        timeoutMs,
      );
      used.on('message', onMessage);
      used.on('error', onEnd);
      used.on('exit', onEnd);
      used.postMessage(task);
    });

  return {
    compile(rule, afterReasoning, signal) {
      const turn = tail.then(() => {
        signal.throwIfAborted();
        return run(rule, afterReasoning);
      });
      tail = turn.catch(() => undefined);
      return turn;
    },
    async close() {
      await worker?.terminate();
    },
  };
}
