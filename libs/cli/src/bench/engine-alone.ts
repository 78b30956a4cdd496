import type { Model, Sampling } from '@medmesh/engine';
import { type Load, promptsOf } from './serve.ts';

/** Greedy, whatever token comes: as the load asks the server. */
const sampling = (maxTokens: number): Sampling => ({
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0n,
  maxTokens,
  stopTokenIds: [],
});

/** New tokens a second of the same load in this process: the engine's own batching and nothing between it and the reader. */
export async function runEngineAlone(model: Model, load: Load, signal: AbortSignal): Promise<number> {
  if (load.arrival.kind !== 'concurrency') return Number.NaN;
  const prompts = promptsOf(load);
  let next = 0;
  let made = 0;
  const start = performance.now();
  const worker = async () => {
    for (let prompt = prompts[next++]; prompt !== undefined; prompt = prompts[next++]) {
      const tokens = Uint32Array.from(prompt);
      for await (const steps of model.generateBatches({ tokens, sampling: sampling(load.newTokens), signal }))
        made += steps.length;
    }
  };
  await Promise.all(Array.from({ length: load.arrival.count }, worker));
  return made / ((performance.now() - start) / 1000);
}
