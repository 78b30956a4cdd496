import { ServerInterceptingCall, type ServerInterceptor } from '@grpc/grpc-js';
import type { CallContext } from 'nice-grpc';

/** Set by this process's own interceptor on incoming calls, in place of whatever a caller sent. Never forwarded. */
export const deadlineHeader = 'medmesh-deadline-unix-ms';

/** Header by which gRPC carries the time left for a call. */
export const timeoutHeader = 'grpc-timeout';

/** The time left in the header's own notation: at most eight digits and a unit. Never zero, which some peers refuse. */
export function formatTimeout(ms: number): string {
  const left = Math.max(1, Math.ceil(ms));
  return left < 1e8 ? `${left}m` : `${Math.min(99_999_999, Math.ceil(left / 1000))}S`;
}

/** Tells handlers the deadline of a call: gRPC enforces it on its own, and then removes it from the metadata. */
export const exposeDeadline: ServerInterceptor = (_method, call) =>
  new ServerInterceptingCall(call, {
    start: (next) =>
      next({
        onReceiveMetadata: (metadata, deliver) => {
          const deadline = Number(call.getDeadline());
          metadata.remove(deadlineHeader);
          if (Number.isFinite(deadline)) metadata.set(deadlineHeader, String(deadline));
          deliver(metadata);
        },
      }),
  });

/** Milliseconds left before the caller gives up; undefined when it set no deadline. Zero or less: it has. */
export function remainingMs(context: Pick<CallContext, 'metadata'>): number | undefined {
  const deadline = context.metadata.get(deadlineHeader);
  return deadline === undefined ? undefined : Number(deadline) - Date.now();
}
