import { isSpanContextValid, trace } from '@opentelemetry/api';
import pino, { type DestinationStream, type LevelWithSilent, type Logger as PinoLogger } from 'pino';
import { describeError } from './describe-error.ts';
import { redactedPaths } from './redaction.ts';

export type Logger = PinoLogger;

export type LoggerOptions = {
  /** The process's name, in every line as `service`. */
  readonly service: string;
  readonly level?: LevelWithSilent | undefined;
  /** Where lines go; stdout unless a test wants them. */
  readonly destination?: DestinationStream | undefined;
};

/**
 * A logger that writes one JSON object a line: `level`, ISO `time`, `service`, `msg`, and inside a span `trace_id` and
 * `span_id`. Fields that may hold patient text or credentials are replaced, and errors are described by
 * `describeError`, so their messages reach the log only when they are known not to quote input.
 */
export function createLogger(o: LoggerOptions): Logger {
  return pino(
    {
      level: o.level ?? 'info',
      base: { service: o.service, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      mixin: activeSpanIds,
      serializers: { err: describe, error: describe, reason: describe },
      redact: { paths: redactedPaths, censor: (value) => (typeof value === 'number' ? value : '[redacted]') },
      hooks: {
        // Without a message of the call's own, pino would take the error's, which may quote its input.
        logMethod(args, method) {
          const [first, message] = args as unknown[];
          const error = first instanceof Error ? first : errorField(first);
          if (error !== undefined && message === undefined) {
            const fields = first instanceof Error ? { err: first } : (first as object);
            method.call(this, fields, describeError(error).message);
          } else {
            method.apply(this, args);
          }
        },
      },
    },
    o.destination ?? pino.destination({ dest: 1, sync: true }),
  );
}

function activeSpanIds(): object {
  const span = trace.getActiveSpan()?.spanContext();
  return span !== undefined && isSpanContextValid(span) ? { trace_id: span.traceId, span_id: span.spanId } : {};
}

const describe = (value: unknown): unknown => (value instanceof Error ? describeError(value) : value);

const errorField = (value: unknown): Error | undefined =>
  typeof value === 'object' && value !== null && 'err' in value && value.err instanceof Error ? value.err : undefined;
