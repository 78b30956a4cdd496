import { EngineError, toEngineError } from './errors.ts';
import { type CancelToken, native } from './native.ts';

export const cancelled = (): EngineError => new EngineError('cancelled', 'the caller cancelled the work');

/** Starts native work that stops when the signal fires. Every failure, a synchronous one too, rejects with an EngineError. */
export async function call<Result>(
  signal: AbortSignal | undefined,
  start: (cancel: CancelToken | null) => Promise<Result>,
): Promise<Result> {
  if (signal?.aborted) throw cancelled();
  const token = signal ? native.createCancel() : null;
  const onAbort = () => token && native.cancel(token);
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    return await start(token);
  } catch (error) {
    throw toEngineError(error);
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}
