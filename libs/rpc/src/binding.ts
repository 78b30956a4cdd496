import { Failure } from '@medmesh/errors';
import type {
  CallContext,
  MethodDefinition,
  ServiceDefinition,
  ServiceImplementation,
  TsProtoServiceDefinition,
} from 'nice-grpc';

/** A service and what answers it, ready for `startServer`. */
export type ServiceBinding = {
  /** `package.Service`. */
  readonly name: string;
  readonly definition: ServiceDefinition;
  readonly implementation: ServiceImplementation<ServiceDefinition>;
};

/** Some or all methods of a service. */
export type PartialImplementation<D extends TsProtoServiceDefinition> = Partial<ServiceImplementation<D>>;

/** Stands for a message that is not what the contract says, so that the failure passes through the middleware. */
const malformed = Object.freeze({ malformed: true });

type AnyMethod = (request: unknown, context: CallContext) => unknown;

/**
 * Binds handlers to a generated service definition. A method without a handler answers UNIMPLEMENTED, reason
 * METHOD_NOT_IMPLEMENTED; a request that does not decode answers INVALID_ARGUMENT, reason REQUEST_MALFORMED. Messages of the methods in `whole` have all
 * their fields, so that none is copied to fill in what is missing.
 */
export function bind<D extends TsProtoServiceDefinition>(
  definition: D,
  implementation: PartialImplementation<D>,
  whole: readonly (keyof D['methods'])[] = [],
): ServiceBinding {
  const methods: Record<string, MethodDefinition<unknown, unknown, unknown, unknown>> = {};
  const handlers: Record<string, AnyMethod> = {};
  for (const [key, method] of Object.entries(definition.methods)) {
    const path = `/${definition.fullName}/${method.name}`;
    methods[key] = {
      path,
      requestStream: method.requestStream,
      responseStream: method.responseStream,
      requestSerialize: encoderOf(method.requestType),
      requestDeserialize: (bytes) => {
        try {
          return method.requestType.decode(bytes);
        } catch {
          return malformed;
        }
      },
      responseSerialize: whole.includes(key)
        ? (message) => method.responseType.encode(message).finish()
        : encoderOf(method.responseType),
      responseDeserialize: (bytes) => method.responseType.decode(bytes),
      options: method.options,
    };
    const handler = (implementation as Record<string, AnyMethod | undefined>)[key]?.bind(implementation);
    handlers[key] = checked(handler ?? missing(path), method, path);
  }
  return {
    name: definition.fullName,
    definition: methods,
    implementation: handlers as ServiceImplementation<ServiceDefinition>,
  };
}

type Codec = { encode(message: unknown): { finish(): Uint8Array }; fromPartial?(value: unknown): unknown };

function encoderOf(type: Codec): (value: unknown) => Uint8Array {
  return (value) => type.encode(type.fromPartial === undefined ? value : type.fromPartial(value)).finish();
}

function missing(path: string): AnyMethod {
  return () => {
    throw new Failure('unimplemented', `this process does not implement ${path.slice(1)}`, {
      reason: 'METHOD_NOT_IMPLEMENTED',
      metadata: { method: path.slice(1) },
    });
  };
}

/** Refuses malformed messages before the handler sees them, and lets a handler that throws at once fail like any other. */
function checked(
  handler: AnyMethod,
  method: { requestStream: boolean; responseStream: boolean },
  path: string,
): AnyMethod {
  const accept = (request: unknown): unknown => {
    if (request === malformed) {
      throw new Failure(
        'invalid_argument',
        `the request is not a message of ${path.slice(1)}; build it from this API's contract`,
        {
          reason: 'REQUEST_MALFORMED',
        },
      );
    }
    return request;
  };
  const acceptAll = async function* (requests: AsyncIterable<unknown>) {
    for await (const request of requests) yield accept(request);
  };
  const admit = (request: unknown) =>
    method.requestStream ? acceptAll(request as AsyncIterable<unknown>) : accept(request);
  if (!method.responseStream) return async (request, context) => await handler(admit(request), context);
  return (request, context) => {
    try {
      return handler(admit(request), context);
    } catch (error) {
      return failing(error);
    }
  };
}

/** A stream that fails before its first message. */
const failing = (error: unknown): AsyncIterable<never> => ({
  [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(error as Error) }),
});
