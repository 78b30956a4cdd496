import { isSpanContextValid, trace } from '@opentelemetry/api';
import pino, { type Bindings, type DestinationStream, type LevelWithSilent, type Logger as PinoLogger } from 'pino';
import { describeError } from './describe-error.ts';
import { redact, redactedDepth } from './redaction.ts';

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
  const logger = pino(
    {
      level: o.level ?? 'info',
      base: { service: o.service, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }), log: redactLine },
      mixin: activeSpanIds,
      serializers: Object.fromEntries(errorFields.map((name) => [name, describe])),
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
  // pino forgets a formatter of bindings in children. Children have this method too: they are made with their parent as prototype.
  const makeChild = Reflect.get(logger, 'child') as (...args: unknown[]) => unknown;
  const redactedChild = function (this: Logger, bindings: Bindings, ...options: unknown[]): unknown {
    return Reflect.apply(makeChild, this, [redactLine(bindings), ...options]);
  };
  logger.child = redactedChild as Logger['child'];
  return logger;
}

/** Fields in which an error is described. */
const errorFields = ['err', 'error', 'reason'];

function activeSpanIds(): object {
  const span = trace.getActiveSpan()?.spanContext();
  return span !== undefined && isSpanContextValid(span) ? { trace_id: span.traceId, span_id: span.spanId } : {};
}

/** pino's own redaction costs thirty times as much as all else of a line. */
function redactLine(fields: Record<string, unknown>): Record<string, unknown> {
  try {
    const line = redact(fields, redactedDepth) as Record<string, unknown>;
    // An error goes to its serializer as it is.
    const errors = errorFields.filter((name) => fields[name] instanceof Error).map((name) => [name, fields[name]]);
    return errors.length === 0 ? line : { ...line, ...Object.fromEntries(errors) };
  } catch {
    return { fields: '[cannot be read]' };
  }
}

/** Runs after redactLine, on a field of the line. */
const describe = (value: unknown): unknown =>
  value instanceof Error ? redact(describeError(value), redactedDepth - 1) : value;

const errorField = (value: unknown): Error | undefined =>
  typeof value === 'object' && value !== null && 'err' in value && value.err instanceof Error ? value.err : undefined;
