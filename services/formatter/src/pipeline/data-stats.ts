import type { dataset } from '@medmesh/proto';
import type { DropCode } from '../rows/raw-row.ts';
import type { FittedRow } from './fit-row.ts';
import { countBins } from './packing.ts';

/** So many row indexes are kept for each reason. */
export const maxSampleRows = 100;
/** So many different warnings are kept. */
const maxWarnings = 100;

/** How often each value from 0 up occurred. Memory goes with the largest value, not with the count. */
function createHistogram() {
  let counts = new Float64Array(1024);
  return {
    add(value: number): void {
      if (value >= counts.length) {
        const larger = new Float64Array(2 ** Math.ceil(Math.log2(value + 1)));
        larger.set(counts);
        counts = larger;
      }
      counts[value] = counts[value]! + 1;
    },
    counts: (): Float64Array => counts,
    distribution(): dataset.Distribution {
      const count = counts.reduce((n, c) => n + c, 0);
      const sum = counts.reduce((n, c, value) => n + c * value, 0);
      // Nearest rank: the smallest value that at least this share of all values does not exceed.
      const percentile = (share: number): number => {
        let left = Math.max(1, Math.ceil(share * count));
        let value = 0;
        for (; value < counts.length - 1; value++) {
          left -= counts[value]!;
          if (left <= 0) break;
        }
        return value;
      };
      const max = counts.findLastIndex((c) => c > 0);
      return {
        count,
        sum,
        min: Math.max(
          0,
          counts.findIndex((c) => c > 0),
        ),
        p50: count === 0 ? 0 : percentile(0.5),
        p95: count === 0 ? 0 : percentile(0.95),
        p99: count === 0 ? 0 : percentile(0.99),
        max: Math.max(0, max),
      };
    },
  };
}

/** Counts of what was used and what was left out. Holds numbers and row indexes, never text. */
export function createStats(maxTokens: number) {
  const prompt = createHistogram();
  const completion = createHistogram();
  const row = createHistogram();
  const trainRow = createHistogram();
  const reasons = new Map<DropCode, { count: number; samples: number[] }>();
  const warnings: string[] = [];
  const totals = { rows: 0, used: 0, truncated: 0, validation: 0, tokens: 0, trainable: 0 };

  return {
    read(rows: number): void {
      totals.rows += rows;
    },
    use(fitted: FittedRow, heldOut: boolean): void {
      const length = fitted.ids.length;
      totals.used += 1;
      totals.truncated += Number(fitted.truncated);
      totals.validation += Number(heldOut);
      totals.tokens += length;
      totals.trainable += fitted.trainableTokenCount;
      prompt.add(fitted.promptTokenCount);
      completion.add(length - fitted.promptTokenCount);
      row.add(length);
      if (!heldOut) trainRow.add(length);
    },
    drop(index: number, code: DropCode): void {
      const reason = reasons.get(code) ?? { count: 0, samples: [] };
      reason.count += 1;
      if (reason.samples.length < maxSampleRows) reason.samples.push(index);
      reasons.set(code, reason);
    },
    warn(warning: string): void {
      if (warnings.length < maxWarnings && !warnings.includes(warning)) warnings.push(warning);
    },
    /** Rows left out for one of these reasons. */
    dropped: (codes: readonly DropCode[]): number =>
      codes.reduce<number>((n, code) => n + (reasons.get(code)?.count ?? 0), 0),
    summary(): dataset.DataStats {
      const trainTokens = trainRow.counts().reduce((n, c, length) => n + c * length, 0);
      const bins = countBins(trainRow.counts(), maxTokens);
      const dropReasons = [...reasons]
        .sort(([a], [b]) => a - b)
        .map(([code, { count, samples }]) => ({ code, rowCount: count, sampleRowIndices: samples }));
      return {
        rowCount: totals.rows,
        usedRowCount: totals.used,
        droppedRowCount: dropReasons.reduce((n, r) => n + r.rowCount, 0),
        truncatedRowCount: totals.truncated,
        validationRowCount: totals.validation,
        tokenCount: totals.tokens,
        trainableTokenCount: totals.trainable,
        promptTokens: prompt.distribution(),
        completionTokens: completion.distribution(),
        rowTokens: row.distribution(),
        dropReasons,
        packingEfficiency: bins === 0 ? 0 : trainTokens / (bins * maxTokens),
        warnings,
      };
    },
  };
}

export type Stats = ReturnType<typeof createStats>;
