import { Failure } from '@medmesh/errors';
import { longrunning, type protobuf, type rpc } from '@medmesh/proto';
import type { Codec } from '@medmesh/records';
import { toStatus } from '@medmesh/rpc';

/** A protobuf message with its type, as `google.protobuf.Any` carries it. */
export type Packed = { typeUrl: string; bytes: Uint8Array };

/** A long-running operation as it is recorded: what the API shows, and what a worker needs to do it. */
export type OperationRecord = {
  operation: longrunning.Operation;
  /** Which workers do it, e.g. `model.import`. */
  kind: string;
  project: string;
  request: Packed;
  /** W3C traceparent of the call that started it. */
  traceparent: string;
  cancelRequested: boolean;
  attempt: number;
  createTimeMs: number;
  /** When its worker was last heard; 0 before the first. */
  heartbeatMs: number;
  /** The process that does it. */
  worker: string;
};

type Stored = Omit<OperationRecord, 'operation' | 'request'> & {
  operation: string;
  request: { typeUrl: string; bytes: string };
};

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64');

export const operationCodec: Codec<OperationRecord> = {
  encode({ operation, request, ...rest }) {
    const stored: Stored = {
      ...rest,
      operation: base64(longrunning.Operation.encode(operation).finish()),
      request: { typeUrl: request.typeUrl, bytes: base64(request.bytes) },
    };
    return Buffer.from(JSON.stringify(stored));
  },
  decode(bytes) {
    const { operation, request, ...rest } = JSON.parse(Buffer.from(bytes).toString()) as Stored;
    return {
      ...rest,
      operation: longrunning.Operation.decode(Buffer.from(operation, 'base64')),
      request: { typeUrl: request.typeUrl, bytes: Buffer.from(request.bytes, 'base64') },
    };
  },
};

const namePattern = /^operations\/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Failure `invalid_argument` if the name cannot be an operation's. */
export function checkOperationName(name: string): void {
  if (namePattern.test(name)) return;
  throw new Failure('invalid_argument', 'name: expected operations/{uuid}', {
    reason: 'FIELD_INVALID',
    fields: [{ field: 'name', description: 'expected operations/{uuid}' }],
  });
}

const any = (packed: Packed): protobuf.Any => ({ typeUrl: packed.typeUrl, value: Buffer.from(packed.bytes) });

/** The operation with its end: a response or an error. */
export const finished = (
  operation: longrunning.Operation,
  result: { response: Packed } | { error: rpc.Status },
): longrunning.Operation => ({
  ...operation,
  done: true,
  result:
    'response' in result ? { $case: 'response', value: any(result.response) } : { $case: 'error', value: result.error },
});

export const withMetadata = (operation: longrunning.Operation, metadata: Packed): longrunning.Operation => ({
  ...operation,
  metadata: any(metadata),
});

export const cancelled = (): Failure =>
  new Failure('cancelled', 'the operation was cancelled', { reason: 'OPERATION_CANCELLED' });

export const cancelledStatus = (): rpc.Status => toStatus(cancelled());
