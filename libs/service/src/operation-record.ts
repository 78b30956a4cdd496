import { type Failure, notFound } from '@medmesh/errors';
import { longrunning, protobuf } from '@medmesh/proto';
import { type Bucket, type Codec, keyOf, parseName, type Records } from '@medmesh/records';

/** A message and its type, as `google.protobuf.Any` holds them. */
export type Packed = { typeUrl: string; bytes: Uint8Array };

/** An operation as it is kept: what callers see, and what its worker needs. */
export type OperationRecord = {
  operation: longrunning.Operation;
  /** Who does it, e.g. `model.import`. */
  kind: string;
  /** The project's id. */
  project: string;
  request: Packed;
  /** A worker has begun. */
  begun: boolean;
  cancelRequested: boolean;
};

const keptMs = 30 * 24 * 60 * 60 * 1000;

/** JSON around the protobuf parts: the record never leaves this library. */
export const operationCodec: Codec<OperationRecord> = {
  encode: ({ operation, request, ...rest }) =>
    Buffer.from(
      JSON.stringify({
        ...rest,
        operation: Buffer.from(longrunning.Operation.encode(operation).finish()).toString('base64'),
        request: { typeUrl: request.typeUrl, bytes: Buffer.from(request.bytes).toString('base64') },
      }),
    ),
  decode: (bytes) => {
    const { operation, request, ...rest } = JSON.parse(Buffer.from(bytes).toString()) as Omit<
      OperationRecord,
      'operation' | 'request'
    > & {
      operation: string;
      request: { typeUrl: string; bytes: string };
    };
    return {
      ...rest,
      operation: longrunning.Operation.decode(Buffer.from(operation, 'base64')),
      request: { typeUrl: request.typeUrl, bytes: Buffer.from(request.bytes, 'base64') },
    };
  },
};

/** Operations are kept for 30 days after their last change. */
export const openOperationRecords = (records: Records): Promise<Bucket<OperationRecord>> =>
  records.bucket('operations', operationCodec, { maxAgeMs: keptMs });

export const pack = ({ typeUrl, bytes }: Packed): protobuf.Any =>
  protobuf.Any.fromPartial({ typeUrl, value: Buffer.from(bytes) });

/** The record's key. Failure `invalid_argument` unless the name is `operations/{operation}`. */
export function operationKey(name: string): string {
  parseName('operations/{operation}', name);
  return keyOf(name);
}

export const operationNotFound = (name: string): Failure => notFound(name);
