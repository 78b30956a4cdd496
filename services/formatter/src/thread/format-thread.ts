import { parentPort, workerData } from 'node:worker_threads';
import { loadTokenizer, resolveCanonicalTemplate } from '@medmesh/text';
import { formatRows } from '../pipeline/format-rows.ts';
import { failureOf, recordOf } from './failure-record.ts';
import {
  type CallName,
  type FromThread,
  ownBytes,
  type ThreadCalls,
  type ThreadSource,
  type ThreadTask,
  type ToThread,
} from './messages.ts';

// The entry of a format thread: `format-in-thread.ts` starts it and answers its calls.
const port = parentPort!;
const task = workerData as ThreadTask;
const stopping = new AbortController();

const waiting = new Map<number, PromiseWithResolvers<ThreadCalls[CallName]['answer']>>();
let calls = 0;

port.on('message', (message: ToThread) => {
  if (message.kind === 'abort') {
    stopping.abort(failureOf(message.failure));
    return;
  }
  const call = waiting.get(message.id);
  waiting.delete(message.id);
  if (message.kind === 'answer') call?.resolve(message.answer);
  else call?.reject(failureOf(message.failure));
});

const send = (message: FromThread, transfer: ArrayBuffer[] = []): void => port.postMessage(message, transfer);

async function call<N extends CallName>(
  name: N,
  argument: ThreadCalls[N]['argument'],
  transfer: ArrayBuffer[] = [],
): Promise<ThreadCalls[N]['answer']> {
  const id = ++calls;
  const answered = Promise.withResolvers<ThreadCalls[CallName]['answer']>();
  waiting.set(id, answered);
  send({ kind: 'call', id, name, argument }, transfer);
  return answered.promise;
}

async function* readSource(number: number): AsyncGenerator<Uint8Array> {
  let ended = false;
  try {
    for (;;) {
      const bytes = await call('read', number);
      ended = bytes === undefined;
      if (bytes === undefined) return;
      yield bytes;
    }
  } finally {
    if (!ended) await call('close', number);
  }
}

const openable = (source: ThreadSource, number: number) => ({ ...source, open: () => readSource(number) });

try {
  const tokenizer = await loadTokenizer(task.tokenizerDir);
  send({ kind: 'tokenizer loaded' });
  const result = await formatRows(
    {
      sources: task.sources.map((source, i) => openable(source, i)),
      evaluation: task.evaluation.map((source, i) => openable(source, task.sources.length + i)),
      tokenizer,
      template: resolveCanonicalTemplate(task.template, tokenizer),
      limits: task.limits,
      ...(task.keep
        ? {
            sink: {
              putBlob: (bytes: Uint8Array) => {
                const own = ownBytes(bytes);
                return call('store', own, [own.buffer]);
              },
            },
          }
        : {}),
      onProgress: (progress) => send({ kind: 'progress', progress }),
    },
    task.spec,
    stopping.signal,
  );
  send({ kind: 'result', result });
} catch (error) {
  send({ kind: 'failure', failure: recordOf(error) });
}
port.close();
