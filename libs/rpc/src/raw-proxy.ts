import { Failure } from '@medmesh/errors';
import type { Metrics } from '@medmesh/telemetry';
import {
  type CallContext,
  type CallOptions,
  type Channel,
  ClientError,
  createClientFactory,
  Metadata,
  type MethodDefinition,
  ServerError,
  type ServiceDefinition,
  type ServiceImplementation,
  Status,
  type TsProtoServiceDefinition,
} from 'nice-grpc';
import type { ServiceBinding } from './binding.ts';
import type { DeadlineAt } from './client-deadline.ts';
import { observeAttempts } from './client-observation.ts';
import { deadlineHeader, remainingMs } from './deadline.ts';

export type RawProxyOptions = {
  readonly metrics?: Metrics | undefined;
  /** Lower-case names of headers that stop here, e.g. the credentials this process has checked. */
  readonly dropHeaders?: readonly string[] | undefined;
};

/** Headers of one hop, written anew for the next. */
const ownHeaders = new Set([
  'user-agent',
  'host',
  'connection',
  'te',
  'content-type',
  'traceparent',
  'tracestate',
  deadlineHeader,
]);

type RawMethod = MethodDefinition<Uint8Array, Uint8Array, Uint8Array, Uint8Array>;
type RawOptions = CallOptions & DeadlineAt;
type RawUnary = (request: unknown, options: RawOptions) => Promise<Uint8Array>;
type RawStream = (request: unknown, options: RawOptions) => AsyncIterable<Uint8Array>;

/**
 * A service that is answered by another process: every method is forwarded as the bytes it came in, and so are
 * headers, trailers and error details. The caller's deadline and cancellation reach the backend; a slow reader on
 * either side slows the other. A backend that cannot be reached answers UNAVAILABLE, reason BACKEND_UNAVAILABLE.
 */
export function rawProxy(service: TsProtoServiceDefinition, backend: Channel, o: RawProxyOptions = {}): ServiceBinding {
  const definition = rawDefinition(service);
  const client = createClientFactory()
    .use(observeAttempts({ metrics: o.metrics, target: backend.getTarget() }))
    .create(definition, backend) as Record<string, unknown>;
  const dropped = new Set([...ownHeaders, ...(o.dropHeaders ?? [])]);

  const implementation: Record<string, unknown> = {};
  for (const [key, { responseStream }] of Object.entries(definition)) {
    const unary = client[key] as unknown as RawUnary;
    const stream = client[key] as unknown as RawStream;
    implementation[key] = responseStream
      ? async function* (request: unknown, context: CallContext) {
          const call = forwarding(context, dropped);
          try {
            yield* stream(request, call.options);
          } catch (e) {
            throw call.outcome(e, service.fullName);
          }
        }
      : async (request: unknown, context: CallContext) => {
          const call = forwarding(context, dropped);
          try {
            return await unary(request, call.options);
          } catch (e) {
            throw call.outcome(e, service.fullName);
          }
        };
  }
  return {
    name: service.fullName,
    definition,
    implementation: implementation as ServiceImplementation<ServiceDefinition>,
  };
}

/** The service's paths and kinds with bytes for messages. */
function rawDefinition(service: TsProtoServiceDefinition): Record<string, RawMethod> {
  const same = (bytes: Uint8Array) => bytes;
  return Object.fromEntries(
    Object.entries(service.methods).map(
      ([key, { name, requestStream, responseStream, options }]): [string, RawMethod] => [
        key,
        {
          path: `/${service.fullName}/${name}`,
          requestStream,
          responseStream,
          requestSerialize: same,
          requestDeserialize: same,
          responseSerialize: same,
          responseDeserialize: same,
          options,
        },
      ],
    ),
  );
}

/** One call's passage: what goes to the backend, and how its answer comes back. */
function forwarding(
  context: CallContext,
  dropped: ReadonlySet<string>,
): { options: RawOptions; outcome(e: unknown, service: string): unknown } {
  const left = remainingMs(context);
  const metadata = Metadata([...context.metadata].filter(([name]) => !dropped.has(name) && !name.startsWith('grpc-')));
  let answered = false;
  const options: RawOptions = {
    metadata,
    signal: context.signal,
    ...(left === undefined ? {} : { deadlineAt: Date.now() + left }),
    onHeader: (header) => {
      answered = true;
      copy(header, context.header);
      context.sendHeader();
    },
    onTrailer: (trailer) => {
      for (const _ of trailer) answered = true;
      copy(trailer, context.trailer);
    },
  };
  return {
    options,
    outcome: (e, service) => {
      if (!(e instanceof ClientError)) return e;
      // Without a word from the backend the status is gRPC's own, and its message would name addresses inside.
      if (e.code === Status.UNAVAILABLE && !answered) {
        return new Failure('unavailable', `${service} cannot be reached at the moment; call again`, {
          reason: 'BACKEND_UNAVAILABLE',
          metadata: { service },
          retryAfterMs: 500,
          cause: e,
        });
      }
      return new ServerError(e.code, e.details);
    },
  };
}

function copy(from: Metadata, to: Metadata): void {
  for (const [name, values] of from) to.set(name, values);
}
