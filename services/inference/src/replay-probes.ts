import type { Adapter, Model } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';

/** How far this server is from the trainer: |Δ log p| over all probe tokens. */
export type Parity = { tokenCount: number; meanDifference: number; maxDifference: number };

/**
 * Scores the adapter's probes again and compares with what the trainer wrote. Failure `failed_precondition` PARITY_MISMATCH above the threshold: a
 * model that is not the trained one is not served.
 */
export async function replayProbes(
  model: Model,
  adapter: Adapter,
  probes: readonly { tokens: number[]; logprobs: number[] }[],
  maxMeanDifference: number,
  name: string,
  signal: AbortSignal,
): Promise<Parity> {
  let sum = 0;
  let maxDifference = 0;
  let tokenCount = 0;
  for (const probe of probes) {
    // Through the generator, so that it is judged where it will answer.
    const { logprobs } = await model.scoreContinuation({
      prompt: Uint32Array.from(probe.tokens.slice(0, 1)),
      continuation: Uint32Array.from(probe.tokens.slice(1)),
      adapter,
      signal,
    });
    for (const [i, expected] of probe.logprobs.entries()) {
      const difference = Math.abs((logprobs[i] ?? Number.NaN) - expected);
      if (Number.isNaN(difference))
        throw new Failure('failed_precondition', `${name} gives no finite score for a parity probe`, {
          reason: 'PARITY_MISMATCH',
        });
      sum += difference;
      maxDifference = Math.max(maxDifference, difference);
      tokenCount += 1;
    }
  }
  if (tokenCount === 0)
    throw new Failure('failed_precondition', `${name} carries no parity probes`, { reason: 'PARITY_MISMATCH' });
  const meanDifference = sum / tokenCount;
  if (meanDifference > maxMeanDifference) {
    throw new Failure(
      'failed_precondition',
      `${name} scores its parity probes ${meanDifference.toPrecision(3)} from the trainer on average; at most ${maxMeanDifference} is allowed`,
      {
        reason: 'PARITY_MISMATCH',
        metadata: { mean_difference: String(meanDifference), max_difference: String(maxDifference) },
      },
    );
  }
  return { tokenCount, meanDifference, maxDifference };
}
