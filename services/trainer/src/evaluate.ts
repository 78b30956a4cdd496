import type { Trainer } from '@medmesh/engine';
import { packFirstFitDecreasing } from './batch-plan.ts';
import { readMicroBatch } from './micro-batch.ts';
import type { RowReader } from './shards.ts';

/** Tokens of one evaluation batch, unless a single row is longer. */
const batchTokens = 2048;

/** Mean loss over all trainable tokens of the rows. */
export async function evaluateRows(
  trainer: Trainer,
  rows: RowReader,
  signal: AbortSignal,
): Promise<{ loss: number; trainableTokens: number }> {
  const all = Array.from({ length: rows.rowCount }, (_, row) => row);
  const longest = all.reduce((max, row) => Math.max(max, rows.rowLength(row)), 0);
  let lossSum = 0;
  let trainableTokens = 0;
  for (const bin of packFirstFitDecreasing(all, (row) => rows.rowLength(row), Math.max(batchTokens, longest))) {
    const result = await trainer.evaluate([await readMicroBatch(rows, bin)], signal);
    lossSum += result.loss * result.trainableTokens;
    trainableTokens += result.trainableTokens;
  }
  return { loss: trainableTokens === 0 ? 0 : lossSum / trainableTokens, trainableTokens };
}
