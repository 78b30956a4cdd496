import { randomUUID } from 'node:crypto';
import { type ErrorCode, isErrorCode } from './error-table.ts';
import { Failure } from './failure.ts';

/** The engine's own codes (libs/engine, error.h) and what they mean to a caller of a service. */
const engineCodes: Readonly<Record<string, ErrorCode>> = {
  invalid: 'invalid_argument',
  unsupported: 'unimplemented',
  io: 'unavailable',
  corrupt: 'data_loss',
  oom: 'resource_exhausted',
  cancelled: 'cancelled',
  device_lost: 'unavailable',
};

/** Operating-system errors that pass by themselves or with another attempt, and the ones that mean "full". */
const systemCodes: Readonly<Record<string, ErrorCode>> = {
  ECONNREFUSED: 'unavailable',
  ECONNRESET: 'unavailable',
  EPIPE: 'unavailable',
  ENOTFOUND: 'unavailable',
  EAI_AGAIN: 'unavailable',
  EHOSTUNREACH: 'unavailable',
  ENETUNREACH: 'unavailable',
  ETIMEDOUT: 'unavailable',
  ENOSPC: 'resource_exhausted',
  EDQUOT: 'resource_exhausted',
  EMFILE: 'resource_exhausted',
};

/**
 * Turns whatever was thrown into a Failure, keeping it as `cause`.
 * - a Failure is returned as it is, also when it is the reason of an abort;
 * - AbortError → `cancelled`, TimeoutError → `deadline_exceeded`;
 * - an engine error, or any error whose `code` is in the table, keeps its message under the matching code;
 * - an operating-system error is named by its code, without its path;
 * - everything else → `internal` with `metadata.error_id`; the caller gets the id, the log gets the rest.
 */
export function toFailure(e: unknown): Failure {
  if (e instanceof Failure) return e;
  if (e instanceof Error) return fromAbort(e) ?? fromCode(e) ?? unforeseen(e);
  return unforeseen(e);
}

function fromAbort(e: Error): Failure | undefined {
  if (e.name === 'TimeoutError') {
    return new Failure('deadline_exceeded', 'the time allowed for this call ran out', { cause: e });
  }
  if (e.name !== 'AbortError') return undefined;
  // Node's own AbortError carries the signal's reason as its cause; the reason says why better than "aborted" does.
  if (e.cause instanceof Failure) return e.cause;
  if (e.cause instanceof Error && e.cause.name === 'TimeoutError') return fromAbort(e.cause);
  return new Failure('cancelled', 'the call was cancelled', { cause: e });
}

function fromCode(e: Error): Failure | undefined {
  const code: unknown = 'code' in e ? e.code : undefined;
  if (typeof code !== 'string') return undefined;
  if (e.name === 'EngineError' || Object.hasOwn(engineCodes, code)) {
    const known = engineCodes[code];
    if (known === undefined) return undefined;
    return new Failure(known, e.message, { reason: `ENGINE_${code.toUpperCase()}`, cause: e });
  }
  if (isErrorCode(code)) return new Failure(code, e.message, { cause: e });
  const system = systemCodes[code];
  if (system === undefined) return undefined;
  const what = system === 'resource_exhausted' ? 'this machine is out of space or handles' : 'a connection failed';
  return new Failure(system, `${what} (${code})`, {
    reason: 'SYSTEM_ERROR',
    metadata: { system_code: code },
    cause: e,
  });
}

function unforeseen(e: unknown): Failure {
  const id = randomUUID();
  return new Failure('internal', `an unforeseen error occurred; the service's log has it under error_id ${id}`, {
    reason: 'UNFORESEEN',
    metadata: { error_id: id },
    cause: e,
  });
}
