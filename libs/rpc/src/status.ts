import { codeOfGrpcStatus, errorTable, Failure, type FieldViolation } from '@medmesh/errors';
import { type protobuf, rpc } from '@medmesh/proto';
import { Status as StatusCode } from 'nice-grpc';

/** Trailer that carries an encoded google.rpc.Status. */
export const statusDetailsTrailer = 'grpc-status-details-bin';
const errorDomain = 'medmesh.dev';

// Trailers share one header block with a peer's limit, often 8 KiB: an error must stay deliverable.
const maxMessageChars = 1024;
const maxFieldCount = 20;
const maxDescriptionChars = 160;

const cut = (text: string, chars: number): string => (text.length > chars ? `${text.slice(0, chars)}…` : text);

const typeUrl = (name: string): string => `type.googleapis.com/google.rpc.${name}`;

const packed = (name: string, bytes: Uint8Array): protobuf.Any => ({
  typeUrl: typeUrl(name),
  value: Buffer.from(bytes),
});

/** The wire form of a Failure: ErrorInfo always, BadRequest when fields are named, RetryInfo when a wait is known. */
export function toStatus(failure: Failure): rpc.Status {
  const info: rpc.ErrorInfo = { reason: failure.reason, domain: errorDomain, metadata: { ...failure.metadata } };
  const details = [packed('ErrorInfo', rpc.ErrorInfo.encode(info).finish())];
  if (failure.fields !== undefined) {
    const fieldViolations = failure.fields
      .slice(0, maxFieldCount)
      .map(({ field, description }) => ({ field, description: cut(description, maxDescriptionChars) }));
    details.push(packed('BadRequest', rpc.BadRequest.encode(rpc.BadRequest.fromPartial({ fieldViolations })).finish()));
  }
  if (failure.retryAfterMs !== undefined) {
    const seconds = Math.floor(failure.retryAfterMs / 1000);
    const nanos = Math.round((failure.retryAfterMs - seconds * 1000) * 1e6);
    details.push(packed('RetryInfo', rpc.RetryInfo.encode({ retryDelay: { seconds, nanos } }).finish()));
  }
  return { code: errorTable[failure.code].grpc, message: cut(failure.message, maxMessageChars), details };
}

/** The Failure a google.rpc.Status stands for. Details of other types, or that do not decode, are left out. */
export function fromStatus(status: rpc.Status, cause?: unknown): Failure {
  const code = codeOfGrpcStatus(status.code);
  let reason: string | undefined;
  let metadata: Record<string, string> | undefined;
  let fields: FieldViolation[] | undefined;
  let retryAfterMs: number | undefined;
  for (const detail of status.details) {
    try {
      if (detail.typeUrl === typeUrl('ErrorInfo')) {
        const info = rpc.ErrorInfo.decode(detail.value);
        reason = info.reason || undefined;
        metadata = Object.keys(info.metadata).length === 0 ? undefined : info.metadata;
      } else if (detail.typeUrl === typeUrl('BadRequest')) {
        fields = rpc.BadRequest.decode(detail.value).fieldViolations.map(({ field, description }) => ({
          field,
          description,
        }));
      } else if (detail.typeUrl === typeUrl('RetryInfo')) {
        const delay = rpc.RetryInfo.decode(detail.value).retryDelay;
        retryAfterMs = delay === undefined ? undefined : delay.seconds * 1000 + delay.nanos / 1e6;
      }
    } catch {
      // A detail is an extra: without it the code and message still tell the caller what to do.
    }
  }
  return new Failure(code, status.message, { reason, metadata, fields, retryAfterMs, cause });
}

/** `5` → `NOT_FOUND`. */
export const statusName = (code: number): string => StatusCode[code] ?? String(code);
