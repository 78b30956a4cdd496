import { errorTable, Failure, toFailure } from '@medmesh/errors';
import { consumeWork, encodeToken, subjects, type WorkConsumer, type WorkMessage } from '@medmesh/events';
import type { Logger } from '@medmesh/log';
import type { longrunning } from '@medmesh/proto';
import type { Bucket } from '@medmesh/records';
import { toStatus } from '@medmesh/rpc';
import type { NatsConnection } from '@nats-io/transport-node';
import { type OperationRecord, operationCodec, operationKey, type Packed, pack } from './operation-record.ts';

/** One run of an operation, as its handler sees it. */
export type OperationRun = {
  readonly name: string;
  /** The request's bytes, as they were given to `start`. */
  readonly request: Uint8Array;
  /** Shows how far it is. */
  update(metadata: Packed): Promise<void>;
  /** Aborts when the operation is cancelled, and when this process stops; in the second case it is done by another later. */
  readonly signal: AbortSignal;
};

export type OperationHandler = (run: OperationRun) => Promise<Packed>;

export type RunOptions = {
  /** How many at once; 1 without it. */
  concurrency?: number;
  /** How long a process may be silent before its operations go to another; 30 s without it. */
  ackWaitMs?: number;
};

export type OperationWorker = WorkConsumer;

const attempts = 5;
const backoffMs = [1_000, 5_000, 15_000, 30_000];
const defaultAckWaitMs = 30_000;

type RunContext = {
  nc: NatsConnection;
  log: Logger;
  bucket: Bucket<OperationRecord>;
  signal?: AbortSignal;
};

/** How an operation ends. */
type Ending = { response: Packed } | { failure: Failure } | { cancelled: true };

/** Takes the operations of one kind from the queue and does them. */
export function runOperations(
  context: RunContext,
  kind: string,
  handler: OperationHandler,
  o: RunOptions = {},
): Promise<OperationWorker> {
  const { nc, log, bucket, signal } = context;
  return consumeWork({
    nc,
    subject: subjects.operation(kind),
    durable: `operation-${encodeToken(kind)}`,
    concurrency: o.concurrency ?? 1,
    ackWaitMs: o.ackWaitMs ?? defaultAckWaitMs,
    maxDeliver: attempts,
    backoffMs,
    log,
    signal,
    handler: (message, stopping) => perform(bucket, log, message, stopping, handler),
    async onDead(message, failure) {
      await finishOperation(bucket, operationCodec.decode(message.data).operation.name, { failure });
    },
  });
}

async function perform(
  bucket: Bucket<OperationRecord>,
  log: Logger,
  message: WorkMessage,
  stopping: AbortSignal,
  handler: OperationHandler,
): Promise<void> {
  const record = await begin(bucket, message);
  if (record === undefined || record.operation.done) return;
  const { name } = record.operation;
  const cancelling = new AbortController();
  const cancelled = new Failure('cancelled', 'the operation was cancelled', { reason: 'OPERATION_CANCELLED' });
  const watched = new AbortController();
  const watching = watchForCancel(bucket, name, watched.signal, () => cancelling.abort(cancelled));
  try {
    if (record.cancelRequested) throw cancelled;
    const response = await handler({
      name,
      request: record.request.bytes,
      update: (metadata) => showMetadata(bucket, name, metadata),
      signal: AbortSignal.any([stopping, cancelling.signal]),
    });
    await finishOperation(bucket, name, { response });
  } catch (error) {
    if (cancelling.signal.aborted || error === cancelled) {
      await finishOperation(bucket, name, { cancelled: true });
      return;
    }
    const failure = toFailure(error);
    // May pass, or the process stops: the queue brings it back.
    if (failure.retryable || stopping.aborted) throw failure;
    const level = failure.code === 'internal' ? 'error' : 'info';
    log[level]({ operation: name, err: failure }, 'the operation failed');
    await finishOperation(bucket, name, { failure });
  } finally {
    watched.abort();
    await watching;
  }
}

/** Notes that a worker has begun. Undefined if the operation was deleted after it had been done. */
async function begin(bucket: Bucket<OperationRecord>, message: WorkMessage): Promise<OperationRecord | undefined> {
  const record = operationCodec.decode(message.data);
  const key = operationKey(record.operation.name);
  // Whoever started it may not have made the record yet, or may have died before.
  if (message.deliveryCount === 1) {
    await bucket.create(key, record).catch((error: unknown) => {
      if (!(error instanceof Failure && error.code === 'already_exists')) throw error;
    });
  }
  try {
    return (await bucket.modify(key, (current) => (current.operation.done ? undefined : { ...current, begun: true })))
      .value;
  } catch (error) {
    if (error instanceof Failure && error.code === 'not_found') return undefined;
    throw error;
  }
}

async function watchForCancel(
  bucket: Bucket<OperationRecord>,
  name: string,
  signal: AbortSignal,
  cancel: () => void,
): Promise<void> {
  try {
    for await (const change of bucket.watch(operationKey(name), signal)) {
      if (!('deleted' in change) && change.value.cancelRequested) cancel();
    }
  } catch {
    // Only the connection's end can be the cause; then the run ends too.
  }
}

async function showMetadata(bucket: Bucket<OperationRecord>, name: string, metadata: Packed): Promise<void> {
  await bucket.modify(operationKey(name), (record) =>
    record.operation.done ? undefined : { ...record, operation: { ...record.operation, metadata: pack(metadata) } },
  );
}

/** Records how an operation ended, unless it had ended already: the first end stays. */
export async function finishOperation(
  bucket: Bucket<OperationRecord>,
  name: string,
  ending: Ending,
  o: { unlessBegun?: boolean } = {},
): Promise<void> {
  const result = resultOf(ending);
  try {
    await bucket.modify(operationKey(name), (record) => {
      if (record.operation.done || (o.unlessBegun === true && record.begun)) return undefined;
      return { ...record, operation: { ...record.operation, done: true, result } };
    });
  } catch (error) {
    // Deleted meanwhile: nobody wants to know.
    if (!(error instanceof Failure && error.code === 'not_found')) throw error;
  }
}

function resultOf(ending: Ending): longrunning.Operation['result'] {
  if ('response' in ending) return { $case: 'response', value: pack(ending.response) };
  if ('failure' in ending) return { $case: 'error', value: toStatus(ending.failure) };
  const status = toStatus(new Failure('cancelled', 'the operation was cancelled', { reason: 'OPERATION_CANCELLED' }));
  return { $case: 'error', value: { ...status, code: errorTable.cancelled.grpc } };
}
