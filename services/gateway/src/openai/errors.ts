import { type ErrorCode, errorTable, toFailure } from '@medmesh/errors';

/** An error as OpenAI's API words it. */
export type OpenAiError = {
  status: number;
  headers: Record<string, string>;
  body: { error: { message: string; type: string; param: string | null; code: string | null } };
};

const types: Partial<Record<ErrorCode, string>> = {
  unauthenticated: 'authentication_error',
  permission_denied: 'permission_error',
  resource_exhausted: 'rate_limit_error',
  internal: 'server_error',
  data_loss: 'server_error',
  unavailable: 'server_error',
  deadline_exceeded: 'server_error',
};

/** Status, headers and body for whatever was thrown. An unforeseen error says nothing of itself. */
export function toOpenAiError(error: unknown): OpenAiError {
  const failure = toFailure(error);
  // What is not implemented is the request's fault here: it named a parameter that this server does not have.
  const status = failure.code === 'unimplemented' ? 400 : errorTable[failure.code].http;
  const seconds = Math.ceil((failure.retryAfterMs ?? 0) / 1000);
  const message = failure.code === 'internal' ? 'an unforeseen error; its details are in the log' : failure.message;
  return {
    status,
    headers: failure.retryAfterMs === undefined ? {} : { 'retry-after': String(Math.max(1, seconds)) },
    body: {
      error: {
        message,
        type: types[failure.code] ?? 'invalid_request_error',
        param: failure.fields?.[0]?.field ?? null,
        code: failure.reason.toLowerCase(),
      },
    },
  };
}
