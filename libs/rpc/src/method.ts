import type { MethodDescriptor } from 'nice-grpc';

/** `/package.Service/Method` → `package.Service/Method`, the name in spans, logs and metrics. */
export const methodName = (method: MethodDescriptor): string => method.path.slice(1);

/** `/package.Service/Method` → `Method`. */
const verbOf = (method: MethodDescriptor): string => method.path.slice(method.path.lastIndexOf('/') + 1);

const readingVerb = /^(Get|List|Query|Estimate|Preview|Render|Count|Tokenize|Detokenize|Wait)/;

/**
 * Whether sending the same request twice does no more than sending it once: the method only reads, declares itself
 * idempotent, or the request carries a `request_id`, which every server of this mesh answers from its first result.
 */
export function isRepeatable(method: MethodDescriptor, request: unknown): boolean {
  if (method.options.idempotencyLevel !== undefined || readingVerb.test(verbOf(method))) return true;
  if (typeof request !== 'object' || request === null || !('requestId' in request)) return false;
  return typeof request.requestId === 'string' && request.requestId !== '';
}

/** Whether a stream has no end of its own, so that waiting for it would only delay a shutdown. */
export const isEndless = (method: MethodDescriptor): boolean => /^(Watch|ServerReflectionInfo)/.test(verbOf(method));

/** Probes and tooling: counted, but neither logged nor traced, or a probe a second would drown everything else. */
export const isHousekeeping = (method: MethodDescriptor): boolean => /^\/grpc\.(health|reflection)\./.test(method.path);
