import { EngineError } from './errors.ts';
import type { AdapterHandle } from './native.ts';
import type { Adapter } from './types.ts';

const handles = new WeakMap<Adapter, AdapterHandle>();

/** Ties an adapter to its handle, so that only adapters made here reach the engine. */
export const rememberAdapter = (adapter: Adapter, handle: AdapterHandle): void => {
  handles.set(adapter, handle);
};

/** The handle behind an adapter; null for none. */
export function adapterHandle(adapter: Adapter | undefined): AdapterHandle | null {
  if (adapter === undefined) return null;
  const handle = handles.get(adapter);
  if (!handle) throw new EngineError('invalid', 'the adapter does not come from loadAdapter');
  return handle;
}
