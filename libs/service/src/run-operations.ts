import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { Failure, toFailure } from '@medmesh/errors';
import { consumeWork, Requeue, subjects } from '@medmesh/events';
import { type Bucket, type Entry, keyOf } from '@medmesh/records';
import { toStatus } from '@medmesh/rpc';
import { withSpan } from '@medmesh/telemetry';
import { cancelled, cancelledStatus, finished, type OperationRecord, type Packed, withMetadata } from './operation-record.ts';
import type { ServiceContext } from './service-context.ts';

/** An operation that is being done. */
export type RunningOperation = {
  readonly name: string;
  readonly request: Uint8Array;
  /** Shows progress. */
  update(metadata: Packed): Promise<void>;
  /** Aborts when the operation is cancelled (its reason: Failure OPERATION_CANCELLED) or the process stops (WORKER_STOPPING). */
  readonly signal: AbortSignal;
};

/** Does an operation and returns its response. May run again after a crash: the second run must end as the first would have. */
export type OperationHandler = (operation: RunningOperation) => Promise<Packed>;

type RunDeps = Pick<ServiceContext<unknown>, 'nc' | 'log' | 'signal'> & {
  bucket: Bucket<OperationRecord>;
  enqueue: (record: OperationRecord) => Promise<void>;
};

const heartbeatMs = 5_000;
/** A worker that is silent for so long has died. */
const silenceMs = 20_000;
const maxAttempts = 5;
const retryMs = 2_000;
const ackWaitMs = 15_000;

/** Follows the record of a running operation: beats its heart and hears its cancellation. */
function attend(deps: RunDeps, key: string, worker: string, cancel: AbortController) {
  const stop = new AbortController();
  const beat = setInterval(() => {
    deps.bucket
      .modify(key, (record) =>
        record.worker === worker && !record.operation.done ? { ...record, heartbeatMs: Date.now() } : undefined,
      )
      .catch((error: unknown) => deps.log.debug({ err: error }, 'a heartbeat was not recorded'));
  }, heartbeatMs);
  const follow = async () => {
    for await (const change of deps.bucket.watch(key, stop.signal)) {
      if (!('value' in change) || change.value.cancelRequested) cancel.abort(cancelled());
    }
  };
  const following = follow().catch((error: unknown) => {
    if (!stop.signal.aborted) deps.log.warn({ err: error }, 'an operation is no longer watched for its cancellation');
  });
  return async () => {
    clearInterval(beat);
    stop.abort();
    await following;
  };
}

async function perform(
  deps: RunDeps,
  entry: Entry<OperationRecord>,
  worker: string,
  handler: OperationHandler,
  stopping: AbortSignal,
): Promise<void> {
  const { key } = entry;
  const { name } = entry.value.operation;
  const end = (result: Parameters<typeof finished>[1]) =>
    deps.bucket.modify(key, (record) =>
      record.operation.done ? undefined : { ...record, operation: finished(record.operation, result) },
    );
  const cancel = new AbortController();
  const leave = attend(deps, key, worker, cancel);
  try {
    const response = await handler({
      name,
      request: entry.value.request.bytes,
      signal: AbortSignal.any([stopping, cancel.signal]),
      async update(metadata) {
        await deps.bucket.modify(key, (record) =>
          record.operation.done ? undefined : { ...record, operation: withMetadata(record.operation, metadata) },
        );
      },
    });
    await leave();
    await end({ response });
  } catch (error) {
    await leave();
    if (cancel.signal.aborted) {
      await end({ error: cancelledStatus() });
      return;
    }
    const failure = toFailure(error);
    const again = stopping.aborted || (failure.retryable && entry.value.attempt < maxAttempts);
    deps.log.warn({ err: failure, operation: name, attempt: entry.value.attempt, again }, 'an operation failed');
    if (again) {
      await deps.bucket.modify(key, (record) => ({ ...record, worker: '', heartbeatMs: 0 }));
      throw new Requeue(stopping.aborted ? 0 : retryMs * 2 ** entry.value.attempt);
    }
    await end({ error: toStatus(failure) });
  }
}

/** Puts operations whose worker died, or whose message was never sent, back on the queue. */
async function sweep(deps: RunDeps, kind: string): Promise<void> {
  for (let pageToken = ''; ; ) {
    const page = await deps.bucket.list(keyOf('operations/'), { pageSize: 1000, pageToken });
    for (const { value } of page.entries) {
      const lastSign = Math.max(value.createTimeMs, value.heartbeatMs);
      if (value.kind === kind && !value.operation.done && Date.now() - lastSign > silenceMs) await deps.enqueue(value);
    }
    if (page.nextPageToken === '') return;
    pageToken = page.nextPageToken;
  }
}

/** Consumes the operations of one kind until stopped; what runs then is handed back. */
export async function runOperations(
  deps: RunDeps,
  kind: string,
  handler: OperationHandler,
): Promise<{ stop(): Promise<void> }> {
  const worker = `${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`;
  const stopping = new AbortController();
  const consumer = await consumeWork({
    nc: deps.nc,
    subject: subjects.operation(kind),
    durable: `operation-${kind.replaceAll('.', '-')}`,
    concurrency: 1,
    ackWaitMs,
    maxDeliver: 1_000,
    backoffMs: 1_000,
    log: deps.log,
    signal: deps.signal,
    async handler(message) {
      const key = keyOf(Buffer.from(message.data).toString());
      const found = await deps.bucket.get(key);
      if (found === undefined || found.value.operation.done) return;
      if (
        found.value.worker !== '' &&
        found.value.worker !== worker &&
        Date.now() - found.value.heartbeatMs < silenceMs
      )
        throw new Requeue(silenceMs / 2);
      const claimed = await deps.bucket.modify(key, (record) =>
        record.operation.done ? undefined : { ...record, worker, heartbeatMs: Date.now(), attempt: record.attempt + 1 },
      );
      if (claimed.value.operation.done || claimed.value.worker !== worker) return;
      if (claimed.value.cancelRequested) {
        await deps.bucket.modify(key, (record) => ({
          ...record,
          operation: finished(record.operation, { error: cancelledStatus() }),
        }));
        return;
      }
      const parent = claimed.value.traceparent;
      await withSpan(
        `operation ${kind}`,
        {
          attributes: { 'medmesh.operation.name': claimed.value.operation.name },
          ...(parent === '' ? {} : { parent }),
        },
        () => perform(deps, claimed, worker, handler, stopping.signal),
      );
    },
  });
  const sweeping = setInterval(() => {
    sweep(deps, kind).catch((error: unknown) => deps.log.debug({ err: error }, 'operations were not swept'));
  }, silenceMs);
  return {
    async stop() {
      clearInterval(sweeping);
      stopping.abort(
        new Failure('unavailable', 'this worker is stopping; the operation goes on in another', {
          reason: 'WORKER_STOPPING',
        }),
      );
      await consumer.stop();
    },
  };
}
