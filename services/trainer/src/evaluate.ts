import type { Trainer } from '@medmesh/engine';
import { packFirstFitDecreasing } from './batch-plan.ts';
import { readMicroBatch } from './micro-batch.ts';
import type { RowReader } from './shards.ts';

/** Tokens of one evaluation batch, unless a single row is longer. */
const batchTokens = 2048;

/** Tokens of the longest batch that evaluates these rows. */
export const evaluationTokens = (rows: RowReader): number =>
  Array.from({ length: rows.rowCount }, (_, row) => rows.rowLength(row)).reduce(
    (most, n) => Math.max(most, n),
    batchTokens,
  );

/** Mean loss over all trainable tokens of the rows. */
export async function evaluateRows(
  trainer: Trainer,
  rows: RowReader,
  signal: AbortSignal,
): Promise<{ loss: number; trainableTokens: number }> {
  const all = Array.from({ length: rows.rowCount }, (_, row) => row);
  let lossSum = 0;
  let trainableTokens = 0;
  for (const bin of packFirstFitDecreasing(all, (row) => rows.rowLength(row), evaluationTokens(rows))) {
    const result = await trainer.evaluate([await readMicroBatch(rows, bin)], signal);
    lossSum += result.loss * result.trainableTokens;
    trainableTokens += result.trainableTokens;
  }
  return { loss: trainableTokens === 0 ? 0 : lossSum / trainableTokens, trainableTokens };
}
