/** What went wrong, in terms a caller can act on. */
export type EngineErrorCode =
  | 'invalid'
  | 'unsupported'
  | 'io'
  | 'corrupt'
  | 'oom'
  | 'cancelled'
  | 'device_lost'
  | 'internal';

const allCodes: EngineErrorCode[] = [
  'invalid',
  'unsupported',
  'io',
  'corrupt',
  'oom',
  'cancelled',
  'device_lost',
  'internal',
];
const codes: ReadonlySet<unknown> = new Set(allCodes);

/** Every error of the engine. The message says what was seen and what to do, and never holds text of a row or prompt. */
export class EngineError extends Error {
  readonly code: EngineErrorCode;

  constructor(code: EngineErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'EngineError';
    this.code = code;
  }
}

/** An error thrown by the addon, as an EngineError; anything without one of our codes is `internal`. */
export function toEngineError(error: unknown): EngineError {
  if (error instanceof EngineError) return error;
  if (!(error instanceof Error)) return new EngineError('internal', String(error));
  const code = 'code' in error && codes.has(error.code) ? (error.code as EngineErrorCode) : 'internal';
  return new EngineError(code, error.message, { cause: error });
}
