import { dataset } from '@medmesh/proto';
import type { Row } from '@medmesh/text';
import { createDigestSet } from '../pipeline/digest-set.ts';
import { textsOf } from '../pipeline/row-identity.ts';
import type { DropCode } from '../rows/raw-row.ts';
import type { EvaluationOverlap } from './evaluation-overlap.ts';
import { holdsIdentifier } from './identifiers.ts';
import { createNearDuplicates } from './near-duplicates.ts';

const { DropReasonCode } = dataset;

export type GateSpec = Pick<
  dataset.DatasetVersionSpec,
  'keepDuplicates' | 'nearDuplicateSimilarity' | 'dropIdentifiers'
>;

/** Judges sound rows, in their order: why one must be left out for what it says, or undefined. */
export type Gates = { judge(row: Row, identity: Buffer): DropCode | undefined };

/** The gates that a spec asks for. A row that one of them leaves out does not make a later one a duplicate, unless it is one itself. */
export function createGates(spec: GateSpec, evaluation: EvaluationOverlap | undefined): Gates {
  const seen = createDigestSet();
  const near = spec.nearDuplicateSimilarity > 0 ? createNearDuplicates(spec.nearDuplicateSimilarity) : undefined;
  return {
    judge(row, identity) {
      if (!spec.keepDuplicates && !seen.add(identity)) return DropReasonCode.DUPLICATE;
      const texts = textsOf(row);
      if (spec.dropIdentifiers && texts.some(holdsIdentifier)) return DropReasonCode.IDENTIFIER_FOUND;
      if (evaluation !== undefined && texts.some((text) => evaluation.overlaps(text)))
        return DropReasonCode.CONTAMINATED;
      if (near?.add(texts.join('\n')) === true) return DropReasonCode.DUPLICATE;
      return undefined;
    },
  };
}
