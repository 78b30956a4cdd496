import { EngineError, type Model } from '@medmesh/engine';

/** The same model, which tells when its device is beyond use in this process: every later call would fail too. Requests fail as they would have. */
export function tellDeviceLost(model: Model, onLost: () => void): Model {
  const told = (error: unknown): unknown => {
    if (error instanceof EngineError && error.code === 'device_lost') onLost();
    return error;
  };
  async function* telling<T>(steps: AsyncIterable<T>) {
    try {
      yield* steps;
    } catch (error) {
      throw told(error);
    }
  }
  return {
    ...model,
    generate: (o) => telling(model.generate(o)),
    generateBatches: (o) => telling(model.generateBatches(o)),
    async scoreContinuation(o) {
      try {
        return await model.scoreContinuation(o);
      } catch (error) {
        throw told(error);
      }
    },
  };
}
