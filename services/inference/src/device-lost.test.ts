import { EngineError, type Model, type Sampling } from '@medmesh/engine';
import { expect, test } from 'vitest';
import { tellDeviceLost } from './device-lost.ts';

const failing = (error: Error) =>
  ({
    generate: () => ({ [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(error) }) }),
    scoreContinuation: () => Promise.reject(error),
  }) as unknown as Model;

async function askBoth(model: Model): Promise<unknown[]> {
  const errors: unknown[] = [];
  const tokens = Uint32Array.of(1);
  try {
    for await (const step of model.generate({ tokens, sampling: {} as Sampling })) errors.push(step);
  } catch (error) {
    errors.push(error);
  }
  await model.scoreContinuation({ prompt: tokens, continuation: tokens }).catch((error: unknown) => errors.push(error));
  return errors;
}

test('a request that fails because the device is lost says so, and fails as it did', async () => {
  for (const [code, told] of [
    ['device_lost', 2],
    ['oom', 0],
  ] as const) {
    const error = new EngineError(code, 'what the engine said');
    let times = 0;
    const errors = await askBoth(
      tellDeviceLost(failing(error), () => {
        times += 1;
      }),
    );
    expect(errors).toEqual([error, error]);
    expect(times).toBe(told);
  }
});
