import { Worker } from 'node:worker_threads';
import { Failure } from '@medmesh/errors';
import type { Materialized } from '@medmesh/objects';
import type { dataset } from '@medmesh/proto';
import type { ResolvedTemplate } from '@medmesh/text';
import type { FormatLimits, FormatProgress, FormatResult } from '../pipeline/format-rows.ts';
import type { ShardSink } from '../pipeline/shard-writer.ts';
import type { SourceFile } from '../rows/read-source.ts';
import { failureOf, recordOf } from './failure-record.ts';
import {
  type CallName,
  type FromThread,
  ownBytes,
  type ThreadCalls,
  type ThreadTask,
  type ToThread,
} from './messages.ts';

export type ThreadedFormatDeps = {
  readonly sources: readonly SourceFile[];
  /** As in `FormatDeps`. */
  readonly evaluation?: readonly SourceFile[] | undefined;
  /** Lays out the tokenizer's files; released as soon as the thread has read them. */
  readonly openTokenizer: (signal: AbortSignal) => Promise<Materialized>;
  readonly template: ResolvedTemplate;
  readonly limits: FormatLimits;
  /** As in `FormatDeps`. */
  readonly sink?: ShardSink | undefined;
  readonly onProgress?: ((progress: FormatProgress) => void) | undefined;
  /** Most memory of the thread's JavaScript objects. Default 512 MiB. */
  readonly heapMebibytes?: number | undefined;
};

const defaultHeapMebibytes = 512;
/**
 * Young objects are collected after so much, which decides what a build occupies: the tokenizer's results live outside
 * the heap, unseen by the collector, until it finds their handles dead. With the default of a process it finds them
 * after hundreds of megabytes.
 */
const youngMebibytes = 8;
/** An aborted thread that has not cleaned up after this is ended. */
const abortPatienceMs = 10_000;

/**
 * `formatRows` in a thread of its own: the service's event loop stays free, the rows' garbage is collected in a heap of
 * bounded size, and whatever a build took is given back when it ends. The thread knows no store: it asks for its sources'
 * bytes and hands its shards over.
 *
 * Fails as `formatRows` does; with `failed_precondition` FORMAT_OUT_OF_MEMORY where rows do not fit the thread's heap.
 */
export async function formatInThread(
  deps: ThreadedFormatDeps,
  spec: dataset.DatasetVersionSpec,
  signal: AbortSignal,
): Promise<FormatResult> {
  const folder = await deps.openTokenizer(signal);
  try {
    signal.throwIfAborted();
    return await runThread(deps, spec, folder, signal);
  } finally {
    folder.release();
  }
}

async function runThread(
  deps: ThreadedFormatDeps,
  spec: dataset.DatasetVersionSpec,
  tokenizer: Materialized,
  signal: AbortSignal,
): Promise<FormatResult> {
  const task: ThreadTask = {
    sources: deps.sources.map(({ format, path }) => ({ format, path })),
    evaluation: (deps.evaluation ?? []).map(({ format, path }) => ({ format, path })),
    tokenizerDir: tokenizer.dir,
    template: deps.template.canonical,
    limits: deps.limits,
    spec,
    keep: deps.sink !== undefined,
  };
  const thread = new Worker(new URL('./format-thread.ts', import.meta.url), {
    name: 'format',
    workerData: task,
    // Telemetry and the like belong to the service's own thread.
    execArgv: [],
    resourceLimits: {
      maxYoungGenerationSizeMb: youngMebibytes,
      maxOldGenerationSizeMb: deps.heapMebibytes ?? defaultHeapMebibytes,
    },
  });
  const send = (message: ToThread, transfer: ArrayBuffer[] = []): void => thread.postMessage(message, transfer);
  const ended = Promise.withResolvers<FormatResult>();
  const desk = createDesk(deps, signal);

  thread.on('message', (message: FromThread) => {
    switch (message.kind) {
      case 'tokenizer loaded':
        tokenizer.release();
        break;
      case 'progress':
        deps.onProgress?.(message.progress);
        break;
      case 'result':
        ended.resolve(message.result);
        break;
      case 'failure':
        ended.reject(failureOf(message.failure));
        break;
      case 'call':
        void desk.answer(message.name, message.argument).then(
          (answer) => send({ kind: 'answer', id: message.id, answer }, transferable(answer)),
          (error: unknown) => send({ kind: 'refusal', id: message.id, failure: recordOf(error) }),
        );
    }
  });
  thread.once('error', (error) => ended.reject(outOfMemory(error) ?? error));
  thread.once('exit', () => ended.reject(new Error('the format thread ended without a result')));

  let patience: NodeJS.Timeout | undefined;
  const onAbort = (): void => {
    send({ kind: 'abort', failure: recordOf(signal.reason) });
    patience = setTimeout(() => void thread.terminate(), abortPatienceMs);
  };
  if (signal.aborted) onAbort();
  else signal.addEventListener('abort', onAbort, { once: true });
  try {
    return await ended.promise;
  } catch (error) {
    // The caller's own reason, not its copy.
    signal.throwIfAborted();
    throw error;
  } finally {
    signal.removeEventListener('abort', onAbort);
    clearTimeout(patience);
    await thread.terminate();
    await desk.close();
  }
}

/** Answers a thread's calls: reads sources piece by piece, and stores shards. */
function createDesk(deps: ThreadedFormatDeps, signal: AbortSignal) {
  const sources = [...deps.sources, ...(deps.evaluation ?? [])];
  const open = new Map<number, AsyncIterator<Uint8Array>>();
  const close = async (number: number): Promise<void> => {
    const reader = open.get(number);
    open.delete(number);
    await reader?.return?.();
  };
  return {
    async answer(name: CallName, argument: number | Uint8Array): Promise<ThreadCalls[CallName]['answer']> {
      if (typeof argument !== 'number') return deps.sink!.putBlob(argument, { signal });
      if (name === 'close') {
        await close(argument);
        return undefined;
      }
      const reader = open.get(argument) ?? sources[argument]!.open(signal)[Symbol.asyncIterator]();
      open.set(argument, reader);
      const next = await reader.next();
      if (next.done === true) open.delete(argument);
      return next.done === true ? undefined : ownBytes(next.value);
    },
    /** Lets go of what a thread that broke down left open. */
    async close(): Promise<void> {
      for (const number of open.keys()) await close(number);
    },
  };
}

const transferable = (answer: ThreadCalls[CallName]['answer']): ArrayBuffer[] =>
  answer instanceof Uint8Array ? [answer.buffer as ArrayBuffer] : [];

function outOfMemory(error: Error): Failure | undefined {
  if (!('code' in error) || error.code !== 'ERR_WORKER_OUT_OF_MEMORY') return undefined;
  return new Failure(
    'failed_precondition',
    'a row needs more memory than a build may use; leave out or shorten the longest rows',
    { reason: 'FORMAT_OUT_OF_MEMORY', cause: error },
  );
}
