import { type ErrorCode, Failure, type FieldViolation, toFailure } from '@medmesh/errors';

/** A Failure on its way to another thread, where its class would be lost. */
export type FailureRecord = {
  readonly code: ErrorCode;
  readonly message: string;
  readonly reason: string;
  readonly fields: readonly FieldViolation[] | undefined;
  readonly metadata: Readonly<Record<string, string>> | undefined;
  readonly retryAfterMs: number | undefined;
  /** Kind and place of what lies underneath, for the log. Its message stays behind: it may quote a row. */
  readonly cause: { readonly name: string; readonly stack: string } | undefined;
};

/** What was thrown in this thread, ready to be sent. */
export function recordOf(thrown: unknown): FailureRecord {
  const { code, message, reason, fields, metadata, retryAfterMs, cause } = toFailure(thrown);
  return {
    code,
    message,
    reason,
    fields,
    metadata,
    retryAfterMs,
    cause: cause instanceof Error ? { name: cause.name, stack: cause.stack ?? '' } : undefined,
  };
}

/** The Failure that another thread sent. */
export function failureOf({ code, message, cause, ...rest }: FailureRecord): Failure {
  if (cause === undefined) return new Failure(code, message, rest);
  return new Failure(code, message, { ...rest, cause: Object.assign(new Error(''), cause) });
}
