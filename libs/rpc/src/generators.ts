import { type Context, context } from '@opentelemetry/api';

/** What middleware gets from `call.next` and returns: a stream's messages, or none and the unary response as return value. */
// biome-ignore lint/suspicious/noConfusingVoidType: nice-grpc spells the end of a stream this way
export type CallGenerator<Message> = AsyncGenerator<Message, Message | void, undefined>;

/** Runs every step of a generator in `inside`; by itself a generator runs in the context of whoever pulls it. */
export function withinContext<Message>(inside: Context, inner: CallGenerator<Message>): CallGenerator<Message> {
  return stepped(inner, (step) => context.with(inside, step));
}

/** Calls `onEnd` once, with the error if there is one, when a generator has ended and before its reader learns of it. */
export function withEnd<Message>(
  inner: CallGenerator<Message>,
  onEnd: (error?: unknown) => void,
): CallGenerator<Message> {
  let ended = false;
  const end = (error?: unknown) => {
    if (!ended) onEnd(error);
    ended = true;
  };
  const onFailure = (error: unknown): never => {
    end(error);
    throw error;
  };
  const onResult = (result: Awaited<StepResult<Message>>) => {
    if (result.done === true) end();
    return result;
  };
  return stepped(inner, (step) => step().then(onResult, onFailure));
}

/** A generator that fails with what `change` makes of the inner one's errors. */
export function withErrors<Message>(
  inner: CallGenerator<Message>,
  change: (error: unknown) => unknown,
): CallGenerator<Message> {
  const fail = (error: unknown) => Promise.reject(change(error) as Error);
  return stepped(inner, (step) => step().catch(fail));
}

/**
 * Ends a generator with `signal.reason` as soon as the signal aborts, even while the inner one is stuck in a step.
 * The inner one is told to return and otherwise left alone.
 */
export function endedBy<Message>(signal: AbortSignal, inner: CallGenerator<Message>): CallGenerator<Message> {
  // One listener for the whole call: Promise.race would leave a reaction behind for every message of a long stream.
  let rejectStep: ((reason: unknown) => void) | undefined;
  const onAbort = () => {
    if (rejectStep === undefined) return;
    rejectStep(signal.reason as Error);
    void inner.return(undefined).catch(() => undefined);
  };
  signal.addEventListener('abort', onAbort, { once: true });
  return stepped(inner, (step, kind) => {
    if (signal.aborted && kind === 'next') {
      void inner.return(undefined).catch(() => undefined);
      return Promise.reject(signal.reason as Error);
    }
    return new Promise((resolve, reject) => {
      rejectStep = reject;
      step().then(
        (result) => {
          rejectStep = undefined;
          if (result.done === true) signal.removeEventListener('abort', onAbort);
          resolve(result);
        },
        (error: unknown) => {
          rejectStep = undefined;
          signal.removeEventListener('abort', onAbort);
          reject(error as Error);
        },
      );
    });
  });
}

type StepResult<Message> = ReturnType<CallGenerator<Message>['next']>;
type Step<Message> = () => StepResult<Message>;
type StepKind = 'next' | 'return' | 'throw';

/** A generator whose every step goes through `run`: a fraction of the cost of `yield*` for each message of a long stream. */
function stepped<Message>(
  inner: CallGenerator<Message>,
  run: (step: Step<Message>, kind: StepKind) => StepResult<Message>,
): CallGenerator<Message> {
  return {
    next: () => run(() => inner.next(), 'next'),
    return: (value) => run(() => inner.return(value), 'return'),
    throw: (error) => run(() => inner.throw(error), 'throw'),
    [Symbol.asyncIterator]() {
      return this;
    },
    [Symbol.asyncDispose]: async () => {
      await run(() => inner.return(undefined), 'return');
    },
  };
}
