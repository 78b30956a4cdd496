import { type ErrorCode, errorTable } from './error-table.ts';

/** One field of a request that was refused: its path (`spec.lora_rank`) and what is allowed. */
export type FieldViolation = { readonly field: string; readonly description: string };

export type FailureOptions = {
  /** UPPER_SNAKE_CASE, stable, for programs. Defaults to the code in upper case. */
  readonly reason?: string | undefined;
  readonly fields?: readonly FieldViolation[] | undefined;
  /** Names and numbers that belong to the reason. Sent to the caller: never row text, prompts or outputs. */
  readonly metadata?: Readonly<Record<string, string>> | undefined;
  /** How long to wait before the same request can succeed. */
  readonly retryAfterMs?: number | undefined;
  /** What happened underneath. Logged by type and place; never sent, never printed whole. */
  readonly cause?: unknown;
};

/**
 * The one error that crosses a boundary. `message` says what was seen and what to do, is sent to the caller as it is,
 * and therefore holds names, counts and limits, never patient text.
 */
export class Failure extends Error {
  readonly code: ErrorCode;
  readonly reason: string;
  readonly fields?: readonly FieldViolation[];
  readonly metadata?: Readonly<Record<string, string>>;
  readonly retryAfterMs?: number;

  constructor(code: ErrorCode, message: string, o: FailureOptions = {}) {
    super(message, o.cause === undefined ? undefined : { cause: o.cause });
    this.name = 'Failure';
    this.code = code;
    this.reason = o.reason ?? code.toUpperCase();
    if (o.fields !== undefined && o.fields.length > 0) this.fields = o.fields;
    if (o.metadata !== undefined) this.metadata = o.metadata;
    if (o.retryAfterMs !== undefined) this.retryAfterMs = o.retryAfterMs;
  }

  /** Whether the same request, unchanged, may succeed later. */
  get retryable(): boolean {
    return errorTable[this.code].retryable;
  }
}

/** `field` of a request breaks its contract; `description` says what was seen and what is allowed. */
export function invalidField(field: string, description: string): Failure {
  return new Failure('invalid_argument', `${field}: ${description}`, {
    reason: 'FIELD_INVALID',
    fields: [{ field, description }],
  });
}

/** No resource of this name exists. */
export function notFound(name: string): Failure {
  return new Failure('not_found', `${name} does not exist`, {
    reason: 'RESOURCE_NOT_FOUND',
    metadata: { resource: name },
  });
}

/** A part of the contract this process does not do; `what` names it, e.g. `streaming of tool calls`. */
export function unimplemented(what: string): Failure {
  return new Failure('unimplemented', `${what} is not implemented`, { reason: 'NOT_IMPLEMENTED' });
}
