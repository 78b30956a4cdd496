import { createHash, randomUUID } from 'node:crypto';
import { Failure, invalidField } from '@medmesh/errors';
import { subjects } from '@medmesh/events';
import type { longrunning, protobuf } from '@medmesh/proto';
import { longrunning as proto } from '@medmesh/proto';
import { type Bucket, idempotent, keyOf } from '@medmesh/records';
import {
  type OperationRecord,
  openOperationRecords,
  operationCodec,
  operationKey,
  operationNotFound,
  type Packed,
  pack,
} from './operation-record.ts';
import {
  finishOperation,
  type OperationHandler,
  type OperationWorker,
  type RunOptions,
  runOperations,
} from './run-operations.ts';
import type { ServiceContext } from './service-context.ts';

export type { Packed } from './operation-record.ts';
export type { OperationRun } from './run-operations.ts';

export type StartOperation = {
  /** Who does it: the kind that some process `run`s. */
  kind: string;
  /** The project's id. */
  project: string;
  /** Handed to the handler; at most about 700 kB. Names and settings, never rows. */
  request: Packed;
  /** What the operation shows from the start. */
  metadata?: Packed;
  /** A repeat with the same id and request returns the operation of the first time. */
  requestId?: string;
  /** Asked before an operation is made, not for a repeat of one that was: what it throws refuses the call, and may be repeated. */
  admit?: () => Promise<void>;
};

/**
 * google.longrunning operations: records that any process can start, look at and cancel, done by whichever process `run`s their kind. They are queued, so
 * that the death of a process only moves them to another; handlers are written so that a second run finds what the first left.
 */
export interface Operations {
  start: (o: StartOperation) => Promise<longrunning.Operation>;
  /** Failure `not_found` if there is no such operation. */
  get: (name: string) => Promise<longrunning.Operation>;
  /** Of `name`: `operations` or '' for all, `projects/{project}` for one project's. Filters: `done = true`, `done = false`. */
  list: (request: Partial<longrunning.ListOperationsRequest>) => Promise<longrunning.ListOperationsResponse>;
  /** Asks for an end: the operation becomes done with CANCELLED, unless it ends otherwise first. Of one that is done, changes nothing. */
  cancel: (name: string) => Promise<void>;
  /** Forgets a done operation. Failure `failed_precondition` OPERATION_RUNNING if it is not. */
  delete: (name: string) => Promise<void>;
  /** Returns the operation when it is done or the time is over, whichever is first; without a timeout, when it is done. */
  wait: (name: string, timeout?: protobuf.Duration, signal?: AbortSignal) => Promise<longrunning.Operation>;
  /**
   * Does the operations of a kind until stopped. What the handler returns becomes the response; a Failure that cannot pass becomes the error; one that may
   * pass is tried again, five times in all.
   */
  run: (kind: string, handler: OperationHandler, o?: RunOptions) => Promise<OperationWorker>;
}

type OperationsContext = Pick<ServiceContext<unknown>, 'nc' | 'records' | 'publisher' | 'log'> & {
  signal?: AbortSignal;
};

export async function createOperations(context: OperationsContext): Promise<Operations> {
  const { records, publisher } = context;
  const bucket = await openOperationRecords(records);

  async function enqueue(o: StartOperation, id: string): Promise<longrunning.Operation> {
    const name = `operations/${id}`;
    const record: OperationRecord = {
      operation: {
        name,
        metadata: o.metadata === undefined ? undefined : pack(o.metadata),
        done: false,
        result: undefined,
      },
      kind: o.kind,
      project: o.project,
      request: o.request,
      begun: false,
      cancelRequested: false,
    };
    // The message first: it holds the whole record, so a crash in between leaves work that makes its own record, never a record without work.
    await publisher.publish(subjects.operation(o.kind), operationCodec.encode(record), {
      messageId: name,
      type: 'google.longrunning.Operation',
    });
    return (await createOrGet(bucket, record)).operation;
  }

  async function start(o: StartOperation): Promise<longrunning.Operation> {
    const requestId = o.requestId ?? '';
    if (requestId === '') {
      await o.admit?.();
      return enqueue(o, randomUUID());
    }
    const method = `operations.${o.kind}`;
    const resCodec = {
      encode: (value: longrunning.Operation) => proto.Operation.encode(value).finish(),
      decode: (bytes: Uint8Array) => proto.Operation.decode(bytes),
    };
    const request = { principal: o.project, method, requestId, body: digestible(o.request), resCodec };
    // The id follows from the request: should this process die in the middle, a repeat finds the same operation.
    const id = uuidFrom(o.project, method, requestId.toLowerCase());
    const first = await idempotent(records, request, async () => {
      if ((await bucket.get(operationKey(`operations/${id}`))) === undefined) await o.admit?.();
      return enqueue(o, id);
    });
    return (await bucket.get(operationKey(first.name)))?.value.operation ?? first;
  }

  async function get(name: string): Promise<longrunning.Operation> {
    const entry = await bucket.get(operationKey(name));
    if (entry === undefined) throw operationNotFound(name);
    return entry.value.operation;
  }

  async function list(
    request: Partial<longrunning.ListOperationsRequest>,
  ): Promise<longrunning.ListOperationsResponse> {
    const filter = readFilter(request.filter ?? '');
    const project = readParent(request.name ?? '');
    const page = await bucket.list(keyOf('operations'), {
      pageSize: request.pageSize ?? 0,
      pageToken: request.pageToken ?? '',
      scope: JSON.stringify([filter, project]),
      where: (record) =>
        (filter === undefined || record.operation.done === filter) &&
        (project === undefined || record.project === project),
    });
    return {
      operations: page.entries.map((entry) => entry.value.operation),
      nextPageToken: page.nextPageToken,
      unreachable: [],
    };
  }

  async function cancel(name: string): Promise<void> {
    const key = operationKey(name);
    const { value } = await bucket.modify(key, (record) =>
      record.operation.done ? undefined : { ...record, cancelRequested: true },
    );
    // Nobody has begun: nobody needs to be told.
    if (!value.operation.done && !value.begun)
      await finishOperation(bucket, name, { cancelled: true }, { unlessBegun: true });
  }

  async function remove(name: string): Promise<void> {
    const entry = await bucket.get(operationKey(name));
    if (entry === undefined) throw operationNotFound(name);
    if (!entry.value.operation.done) {
      throw new Failure('failed_precondition', `${name} is not done; cancel it first`, { reason: 'OPERATION_RUNNING' });
    }
    await bucket.delete(entry.key, entry.revision);
  }

  async function wait(name: string, timeout?: protobuf.Duration, signal?: AbortSignal): Promise<longrunning.Operation> {
    const current = await get(name);
    if (current.done) return current;
    const enough = new AbortController();
    const limits = [
      enough.signal,
      ...(signal === undefined ? [] : [signal]),
      ...(timeout === undefined ? [] : [AbortSignal.timeout(millisecondsOf(timeout))]),
    ];
    let latest = current;
    for await (const change of bucket.watch(operationKey(name), AbortSignal.any(limits))) {
      if ('deleted' in change) throw operationNotFound(name);
      latest = change.value.operation;
      if (latest.done) break;
    }
    enough.abort();
    if (!latest.done) signal?.throwIfAborted();
    return latest;
  }

  return {
    start,
    get,
    list,
    cancel,
    delete: remove,
    wait,
    run: (kind, handler, o) => runOperations({ ...context, bucket }, kind, handler, o),
  };
}

export async function createOrGet(bucket: Bucket<OperationRecord>, record: OperationRecord): Promise<OperationRecord> {
  const key = operationKey(record.operation.name);
  try {
    return (await bucket.create(key, record)).value;
  } catch (error) {
    if (!(error instanceof Failure && error.code === 'already_exists')) throw error;
    return (await bucket.get(key))?.value ?? record;
  }
}

const digestible = ({ typeUrl, bytes }: Packed): Uint8Array => Buffer.concat([Buffer.from(`${typeUrl}\n`), bytes]);

/** A UUID (version 8: of our own making) that follows from the parts. */
function uuidFrom(...parts: string[]): string {
  const hex = createHash('sha256').update(JSON.stringify(parts)).digest('hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}

const millisecondsOf = ({ seconds, nanos }: protobuf.Duration): number =>
  Math.max(0, Math.min(seconds * 1000 + nanos / 1e6, 2 ** 31 - 1));

function readFilter(filter: string): boolean | undefined {
  const text = filter.trim();
  if (text === '') return undefined;
  const match = /^done\s*=\s*(true|false)$/.exec(text);
  if (match === null) throw invalidField('filter', 'use `done = true`, `done = false` or nothing');
  return match[1] === 'true';
}

function readParent(name: string): string | undefined {
  if (name === '' || name === 'operations') return undefined;
  const match = /^projects\/([^/]+)(\/operations)?$/.exec(name);
  if (match === null) throw invalidField('name', 'use `operations` or `projects/{project}`');
  return match[1];
}
