import { randomUUID } from 'node:crypto';
import { Failure, notFound } from '@medmesh/errors';
import { subjects } from '@medmesh/events';
import { longrunning, type protobuf } from '@medmesh/proto';
import { type Bucket, type Entry, idempotent, keyOf } from '@medmesh/records';
import { activeTraceparent } from '@medmesh/telemetry';
import {
  cancelledStatus,
  checkOperationName,
  finished,
  type OperationRecord,
  operationCodec,
  type Packed,
  withMetadata,
} from './operation-record.ts';
import { type OperationHandler, runOperations } from './run-operations.ts';
import type { ServiceContext } from './service-context.ts';

export type StartOperation = {
  /** Which workers do it, e.g. `model.import`. */
  kind: string;
  project: string;
  request: Packed;
  /** Shown until the first progress report. */
  metadata?: Packed;
  /** A UUID; a repeat with the same request returns the same operation. */
  requestId?: string;
};

/** Long-running operations (google.longrunning): recorded, put on the queue, done by whichever process runs their kind, resumed after a crash. */
export type Operations = {
  start(o: StartOperation): Promise<longrunning.Operation>;
  get(name: string): Promise<longrunning.Operation>;
  list(request: longrunning.ListOperationsRequest): Promise<longrunning.ListOperationsResponse>;
  /** Asks the worker to stop; the operation ends with CANCELLED. Of a finished one, nothing changes. */
  cancel(name: string): Promise<void>;
  /** Deletes the record of a finished operation. */
  delete(name: string): Promise<void>;
  /** Resolves when it is done or the time is up, with the operation as it is then. */
  wait(name: string, timeout: protobuf.Duration | undefined, signal: AbortSignal): Promise<longrunning.Operation>;
  /** Does operations of this kind, one after the other. */
  run(kind: string, handler: OperationHandler): Promise<{ stop(): Promise<void> }>;
};

const defaultWaitMs = 30_000;
const longestWaitMs = 10 * 60_000;

export async function createOperations(
  context: Pick<ServiceContext<unknown>, 'nc' | 'records' | 'publisher' | 'log' | 'signal'>,
): Promise<Operations> {
  const { records, publisher } = context;
  const bucket: Bucket<OperationRecord> = await records.bucket('operations', operationCodec);

  const entryOf = async (name: string): Promise<Entry<OperationRecord>> => {
    checkOperationName(name);
    const entry = await bucket.get(keyOf(name));
    if (entry === undefined) throw notFound(name);
    return entry;
  };

  const enqueue = async (record: OperationRecord): Promise<void> => {
    await publisher.publish(subjects.operation(record.kind), Buffer.from(record.operation.name), {
      messageId: `${record.operation.name}-${record.attempt}-${record.heartbeatMs}`,
      type: 'google.longrunning.Operation',
    });
  };

  const create = async (o: StartOperation): Promise<longrunning.Operation> => {
    const operation = longrunning.Operation.fromPartial({ name: `operations/${randomUUID()}` });
    const record: OperationRecord = {
      operation: o.metadata === undefined ? operation : withMetadata(operation, o.metadata),
      kind: o.kind,
      project: o.project,
      request: o.request,
      traceparent: activeTraceparent() ?? '',
      cancelRequested: false,
      attempt: 0,
      createTimeMs: Date.now(),
      heartbeatMs: 0,
      worker: '',
    };
    await bucket.create(keyOf(operation.name), record);
    await enqueue(record);
    return record.operation;
  };

  return {
    start(o) {
      const codec = {
        encode: (operation: longrunning.Operation) => longrunning.Operation.encode(operation).finish(),
        decode: (bytes: Uint8Array) => longrunning.Operation.decode(bytes),
      };
      return idempotent(
        records,
        {
          method: o.kind,
          requestId: o.requestId ?? '',
          body: Buffer.concat([Buffer.from(o.request.typeUrl), o.request.bytes]),
          resCodec: codec,
        },
        () => create(o),
      );
    },
    async get(name) {
      return (await entryOf(name)).value.operation;
    },
    async list(request) {
      const page = await bucket.list(keyOf('operations/'), {
        pageSize: request.pageSize,
        pageToken: request.pageToken,
      });
      return longrunning.ListOperationsResponse.fromPartial({
        operations: page.entries.map((entry) => entry.value.operation),
        nextPageToken: page.nextPageToken,
      });
    },
    async cancel(name) {
      const entry = await entryOf(name);
      await bucket.modify(entry.key, (record) => {
        if (record.operation.done || record.cancelRequested) return undefined;
        // Nobody has begun: it ends here. The queue's message finds it done.
        if (record.worker === '')
          return {
            ...record,
            cancelRequested: true,
            operation: finished(record.operation, { error: cancelledStatus() }),
          };
        return { ...record, cancelRequested: true };
      });
    },
    async delete(name) {
      const entry = await entryOf(name);
      if (!entry.value.operation.done) {
        throw new Failure('failed_precondition', `${name} is not done; cancel it first`, {
          reason: 'OPERATION_NOT_DONE',
        });
      }
      await bucket.delete(entry.key, entry.revision);
    },
    async wait(name, timeout, signal) {
      const asked = timeout === undefined ? defaultWaitMs : timeout.seconds * 1000 + timeout.nanos / 1e6;
      let { operation } = (await entryOf(name)).value;
      if (operation.done) return operation;
      const limit = AbortSignal.any([signal, AbortSignal.timeout(Math.min(asked, longestWaitMs))]);
      try {
        for await (const change of bucket.watch(keyOf(name), limit)) {
          if (!('value' in change)) throw notFound(name);
          operation = change.value.operation;
          if (operation.done) return operation;
        }
      } catch (error) {
        if (!limit.aborted) throw error;
      }
      signal.throwIfAborted();
      return operation;
    },
    run: (kind, handler) => runOperations({ ...context, bucket, enqueue }, kind, handler),
  };
}
