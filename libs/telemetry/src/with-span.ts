import {
  type Attributes,
  type Context,
  context,
  type Link,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
} from '@opentelemetry/api';
import { attribute } from './semconv.ts';
import { contextFromTraceparent } from './trace-context.ts';

const kinds = {
  internal: SpanKind.INTERNAL,
  server: SpanKind.SERVER,
  client: SpanKind.CLIENT,
  producer: SpanKind.PRODUCER,
  consumer: SpanKind.CONSUMER,
} as const;

export type SpanOptions = {
  readonly kind?: keyof typeof kinds | undefined;
  /** Names, counts and hashes: never row text, prompts or outputs. */
  readonly attributes?: Attributes | undefined;
  /** A context or a stored traceparent to hang the span under, instead of the active span. */
  readonly parent?: Context | string | undefined;
  /** Traceparents of spans that led to this one without containing it. Malformed ones are left out. */
  readonly links?: readonly (string | undefined)[] | undefined;
};

/**
 * Runs `fn` inside a new active span, and ends the span when `fn` settles. An error marks the span by its type and is
 * rethrown; its message stays out of the span, since only the log may judge whether a message is safe to keep.
 */
export async function withSpan<T>(name: string, o: SpanOptions, fn: (span: Span) => T | Promise<T>): Promise<T> {
  const { span, context: inside } = startSpan(name, o);
  try {
    return await context.with(inside, fn, undefined, span);
  } catch (e) {
    failSpan(span, errorType(e));
    throw e;
  } finally {
    span.end();
  }
}

/** Starts a span for work whose end is elsewhere, with the context to run its parts in. The caller ends it. */
export function startSpan(name: string, o: SpanOptions): { span: Span; context: Context } {
  const parent = typeof o.parent === 'string' ? contextFromTraceparent(o.parent) : (o.parent ?? context.active());
  const span = trace
    .getTracer('medmesh')
    .startSpan(
      name,
      { kind: kinds[o.kind ?? 'internal'], attributes: o.attributes ?? {}, links: linksOf(o.links ?? []) },
      parent,
    );
  return { span, context: trace.setSpan(parent, span) };
}

/** Marks a span as failed with a low-cardinality type: a reason, a status name or a class name. */
export function failSpan(span: Span, type: string): void {
  span.setAttribute(attribute.errorType, type);
  span.setStatus({ code: SpanStatusCode.ERROR });
}

/** The type of an error for `error.type`: the reason of a Failure, the class of anything else. */
export function errorType(e: unknown): string {
  if (!(e instanceof Error)) return '_OTHER';
  return e.name === 'Failure' && 'reason' in e ? String(e.reason) : e.name;
}

function linksOf(traceparents: readonly (string | undefined)[]): Link[] {
  return traceparents.flatMap((traceparent) => {
    const linked = trace.getSpanContext(contextFromTraceparent(traceparent));
    return linked === undefined ? [] : [{ context: linked }];
  });
}
