import { randomUUID } from 'node:crypto';
import { Failure } from '@medmesh/errors';
import { runningKey } from './generate.ts';

/**
 * Does the work of a unary request that Cancel can name. `work` gets its id, made here where the caller gave none, and a signal that ends with the call or
 * by Cancel. Failure `already_exists` while another request of the tenant has the id; `cancelled` when Cancel ended it.
 */
export async function asNamedRequest<T>(
  running: Map<string, AbortController>,
  { requestId, tenant, signal }: { requestId: string; tenant: string; signal: AbortSignal },
  work: (requestId: string, signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const id = requestId || randomUUID();
  const key = runningKey(tenant, id);
  if (running.has(key))
    throw new Failure('already_exists', `request ${id} is running`, { reason: 'REQUEST_ID_REUSED' });
  const cancel = new AbortController();
  running.set(key, cancel);
  try {
    return await work(id, AbortSignal.any([signal, cancel.signal]));
  } catch (error) {
    if (cancel.signal.aborted && !signal.aborted)
      throw new Failure('cancelled', `request ${id} was cancelled`, { reason: 'CANCELLED', cause: error });
    throw error;
  } finally {
    running.delete(key);
  }
}
