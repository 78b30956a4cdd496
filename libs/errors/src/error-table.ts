/** One row of the table: the gRPC status number, the HTTP status, and whether the same request may succeed later unchanged. */
export type ErrorRow = { readonly grpc: number; readonly http: number; readonly retryable: boolean };

/**
 * Every code a `Failure` can carry. The table is closed: a new situation is a new `reason`, not a new code, so a client
 * that switches over the codes stays complete.
 */
export const errorTable = {
  cancelled: { grpc: 1, http: 499, retryable: false },
  invalid_argument: { grpc: 3, http: 400, retryable: false },
  deadline_exceeded: { grpc: 4, http: 504, retryable: true },
  not_found: { grpc: 5, http: 404, retryable: false },
  already_exists: { grpc: 6, http: 409, retryable: false },
  permission_denied: { grpc: 7, http: 403, retryable: false },
  resource_exhausted: { grpc: 8, http: 429, retryable: true },
  failed_precondition: { grpc: 9, http: 400, retryable: false },
  aborted: { grpc: 10, http: 409, retryable: true },
  unimplemented: { grpc: 12, http: 501, retryable: false },
  // Not retryable: an unforeseen error is a defect, and repeating it costs the same work for the same answer.
  internal: { grpc: 13, http: 500, retryable: false },
  unavailable: { grpc: 14, http: 503, retryable: true },
  data_loss: { grpc: 15, http: 500, retryable: false },
  unauthenticated: { grpc: 16, http: 401, retryable: false },
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof errorTable;

/** Whether a string is one of the table's codes. */
export const isErrorCode = (value: unknown): value is ErrorCode =>
  typeof value === 'string' && Object.hasOwn(errorTable, value);

const codeByGrpcStatus = new Map<number, ErrorCode>(
  (Object.keys(errorTable) as ErrorCode[]).map((code) => [errorTable[code].grpc, code]),
);

/**
 * The code of a gRPC status number. OUT_OF_RANGE (11) reads as `invalid_argument`; UNKNOWN (2) and numbers outside the
 * protocol read as `internal`. OK (0) is no error and must not be passed.
 */
export function codeOfGrpcStatus(status: number): ErrorCode {
  if (status === 11) return 'invalid_argument';
  return codeByGrpcStatus.get(status) ?? 'internal';
}
