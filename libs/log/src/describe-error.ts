/** What the log keeps of an error. */
export type ErrorDescription = {
  readonly type: string;
  readonly message: string;
  readonly code?: string;
  readonly reason?: string;
  readonly fields?: readonly string[];
  readonly metadata?: unknown;
  /** Where it was thrown: call sites only. A stack's first line repeats the message. */
  readonly stack?: readonly string[];
  /** What lies underneath, outermost first, by type and place. */
  readonly causes?: readonly Omit<ErrorDescription, 'causes' | 'metadata'>[];
};

/**
 * Error classes whose messages are written by people who follow the rule that messages hold no input, or made by a
 * platform that does not quote it. Everything else (JSON.parse, SQL engines, HTTP clients) quotes what it choked on,
 * and that may be a patient's row: such a message is withheld, while type, code and stack remain.
 */
const plainSpoken = new Set([
  'Failure',
  'ConfigError',
  'EngineError',
  'AbortError',
  'TimeoutError',
  'TypeError',
  'RangeError',
  'ReferenceError',
  'AssertionError',
  // NATS
  'ConnectionError',
  'ClosedConnectionError',
  'DrainingConnectionError',
  'NoRespondersError',
  'ProtocolError',
  'AuthorizationError',
  'PermissionViolationError',
  'JetStreamApiError',
  'JetStreamError',
  'ConsumerNotFoundError',
  'StreamNotFoundError',
  // S3 answers
  'S3Error',
]);

const maxFrames = 12;
const maxCauses = 5;

/** Describes an error for the log: everything about it that cannot hold patient text. */
export function describeError(error: Error): ErrorDescription {
  const causes: Omit<ErrorDescription, 'causes' | 'metadata'>[] = [];
  for (let cause = error.cause; cause !== undefined && cause !== null && causes.length < maxCauses; ) {
    if (!(cause instanceof Error)) {
      causes.push({ type: typeof cause, message: withheld });
      break;
    }
    causes.push(describeOne(cause));
    cause = cause.cause;
  }
  const metadata = error.name === 'Failure' && 'metadata' in error ? { metadata: error.metadata } : {};
  return { ...describeOne(error), ...metadata, ...(causes.length === 0 ? {} : { causes }) };
}

const withheld = '[withheld: it may quote input]';

function describeOne(error: Error): Omit<ErrorDescription, 'causes' | 'metadata'> {
  const code = stringProperty(error, 'code');
  const reason = error.name === 'Failure' ? stringProperty(error, 'reason') : undefined;
  const fields = error.name === 'Failure' ? fieldNames(error) : undefined;
  const stack = callSites(error);
  return {
    type: error.name,
    message: plainSpoken.has(error.name) || isSystemError(error) ? error.message : withheld,
    ...(code === undefined ? {} : { code }),
    ...(reason === undefined ? {} : { reason }),
    ...(fields === undefined ? {} : { fields }),
    ...(stack.length === 0 ? {} : { stack }),
  };
}

/** libuv's errors ("connect ECONNREFUSED 10.0.0.1:4222") name an address or a path, never content. */
const isSystemError = (error: Error): boolean => 'syscall' in error && 'errno' in error;

function stringProperty(error: Error, name: string): string | undefined {
  const value: unknown = Reflect.get(error, name);
  return typeof value === 'string' && /^[\w.-]{1,64}$/.test(value) ? value : undefined;
}

function fieldNames(error: Error): string[] | undefined {
  const fields: unknown = Reflect.get(error, 'fields');
  return Array.isArray(fields) ? fields.map((f: { field?: unknown }) => String(f.field)) : undefined;
}

function callSites(error: Error): string[] {
  return (
    (error.stack ?? '')
      .split('\n')
      .map((line) => line.trim())
      // A message may have lines of its own, even one that begins with "at "; a call site ends in :line:column.
      .filter((line) => /^at [^ ].*:\d+:\d+\)?$/.test(line) && !error.message.includes(line))
      .slice(0, maxFrames)
  );
}
