import type { CallContext } from 'nice-grpc';

/** Header that names the tenant of a call between processes of the mesh. The gateway alone writes it, from the caller's key. */
export const tenantHeader = 'x-medmesh-tenant';

/** The tenant of a call; empty where the gateway asks for no keys. */
export function callerTenant(context: Pick<CallContext, 'metadata'>): string {
  const value = context.metadata.get(tenantHeader);
  return typeof value === 'string' ? value : '';
}
