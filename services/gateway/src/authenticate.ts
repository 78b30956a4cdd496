import { Failure } from '@medmesh/errors';
import { type CallContext, type ServerMiddleware, type ServerMiddlewareCall, tenantHeader } from '@medmesh/rpc';
import type { ApiKeys } from './api-keys.ts';

/** Services that need no key: whoever runs the mesh asks whether it lives. */
const openPaths = /^\/(grpc\.health\.v1\.Health\/|inference\.GRPCInferenceService\/Server(Live|Ready)$)/;

/** What a key with access `inference` opens. */
const inferencePaths =
  /^\/(medmesh\.inference\.v1\.InferenceService|medmesh\.dataset\.v1\.TokenizerService|inference\.GRPCInferenceService|grpc\.reflection\.v1(alpha)?\.ServerReflection)\//;

/** Lets a call in by its key and writes its tenant for the processes behind; a tenant that the caller wrote is removed. */
export function authenticate(keys: ApiKeys): ServerMiddleware {
  return async function* <Request, Response>(call: ServerMiddlewareCall<Request, Response>, context: CallContext) {
    context.metadata.delete(tenantHeader);
    if (!openPaths.test(call.method.path)) {
      const { tenant, access } = keys.authenticate(context.metadata.get('authorization'));
      if (access !== 'all' && !inferencePaths.test(call.method.path)) {
        throw new Failure('permission_denied', 'this key may ask for text and nothing else', {
          reason: 'ACCESS_TOO_SMALL',
        });
      }
      if (tenant !== '') context.metadata.set(tenantHeader, tenant);
    }
    return yield* call.next(call.request, context);
  };
}
