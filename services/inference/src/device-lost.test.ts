import { EngineError, type Model, type Sampling } from '@medmesh/engine';
import { expect, test } from 'vitest';
import { tellDeviceLost } from './device-lost.ts';

const failing = (error: Error) => {
  const steps = () => ({ [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(error) }) });
  return {
    generate: steps,
    generateBatches: steps,
    generateEach: () => Promise.reject(error),
    scoreContinuation: () => Promise.reject(error),
    embed: () => Promise.reject(error),
  } as unknown as Model;
};

async function askEveryWay(model: Model): Promise<unknown[]> {
  const errors: unknown[] = [];
  const tokens = Uint32Array.of(1);
  const options = { tokens, sampling: {} as Sampling };
  for (const steps of [model.generate(options), model.generateBatches(options)])
    try {
      for await (const step of steps) errors.push(step);
    } catch (error) {
      errors.push(error);
    }
  await model.generateEach(options, () => false).catch((error: unknown) => errors.push(error));
  await model.scoreContinuation({ prompt: tokens, continuation: tokens }).catch((error: unknown) => errors.push(error));
  await model.embed({ tokens, pooling: 'mean' }).catch((error: unknown) => errors.push(error));
  return errors;
}

test('a request that fails because the device is lost says so, and fails as it did', async () => {
  for (const [code, told] of [
    ['device_lost', 5],
    ['oom', 0],
  ] as const) {
    const error = new EngineError(code, 'what the engine said');
    let times = 0;
    const errors = await askEveryWay(
      tellDeviceLost(failing(error), () => {
        times += 1;
      }),
    );
    expect(errors).toEqual(Array.from({ length: 5 }, () => error));
    expect(times).toBe(told);
  }
});
