import { Failure } from '@medmesh/errors';
import { type CommandContext, withContext } from '../../context.ts';

/** What the engine says is wrong with an input is the caller's to mend; a disk that refuses is not. */
const refusals: ReadonlySet<string> = new Set(['invalid', 'unsupported', 'corrupt']);

const engineCode = (error: unknown): string | undefined =>
  error instanceof Error && error.name === 'EngineError' && 'code' in error ? String(error.code) : undefined;

const asFailure = (error: unknown, code: string, refused: boolean): Failure =>
  new Failure(refused ? 'invalid_argument' : 'internal', (error as Error).message, {
    reason: `ENGINE_${code.toUpperCase()}`,
    cause: error,
  });

/** Runs a command of the engine: bad input ends with exit code 2 and the engine's own words, a failing disk with 1. */
export const engineAction = <A extends unknown[]>(
  signal: AbortSignal,
  action: (context: CommandContext, ...rest: A) => Promise<void>,
): ((...args: A) => Promise<void>) =>
  withContext<A>(signal, async (context, ...rest) => {
    try {
      await action(context, ...rest);
    } catch (error) {
      const code = engineCode(error);
      if (code === 'io' || (code !== undefined && refusals.has(code))) throw asFailure(error, code, code !== 'io');
      throw error;
    }
  });

/** Reading what the caller named: a file that cannot be read is a refusal too. */
export async function reading<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (engineCode(error) === 'io') throw asFailure(error, 'io', true);
    throw error;
  }
}
