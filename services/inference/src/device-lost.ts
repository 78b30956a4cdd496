import { EngineError, type Model } from '@medmesh/engine';

/** The same model, which tells when its device is beyond use in this process: every later call would fail too. Requests fail as they would have. */
export function tellDeviceLost(model: Model, onLost: () => void): Model {
  const told = (error: unknown): unknown => {
    if (error instanceof EngineError && error.code === 'device_lost') onLost();
    return error;
  };
  const tellingOf = <T>(result: Promise<T>): Promise<T> =>
    result.catch((error: unknown) => {
      throw told(error);
    });
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
    generateEach: (o, take) => tellingOf(model.generateEach(o, take)),
    scoreContinuation: (o) => tellingOf(model.scoreContinuation(o)),
    embed: (o) => tellingOf(model.embed(o)),
  };
}
