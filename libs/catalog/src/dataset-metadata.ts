import { Failure } from '@medmesh/errors';

/** Where a split's shards lie in a dataset manifest, in reading order, and what they hold. */
export type SplitFiles = {
  paths: string[];
  rowCount: number;
  tokenCount: number;
  trainableTokenCount: number;
  maxRowTokens: number;
};

/**
 * What the manifest of a dataset version says besides its files. The formatter writes it, lifecycle and trainer read it.
 * `template` is the canonical template, as `resolveCanonicalTemplate` of @medmesh/text takes it: serving renders with it.
 */
export type DatasetMetadata = {
  format: 1;
  tokenizerDigest: string;
  templateDigest: string;
  template: string;
  specDigest: string;
  inputDigests: string[];
  train: SplitFiles;
  validation: SplitFiles;
};

/** As the manifest's string map holds it. */
export const serializeDatasetMetadata = (metadata: DatasetMetadata): Record<string, string> => ({
  'medmesh.dataset': JSON.stringify(metadata),
});

/** Reads it back; Failure `data_loss` if the manifest was not written by the formatter. */
export function parseDatasetMetadata(metadata: Record<string, string>): DatasetMetadata {
  const text = metadata['medmesh.dataset'];
  if (text === undefined)
    throw new Failure('data_loss', 'the manifest has no dataset metadata; build the version again', {
      reason: 'MANIFEST_INVALID',
    });
  const parsed = JSON.parse(text) as DatasetMetadata;
  if (parsed.format !== 1) {
    throw new Failure(
      'failed_precondition',
      `the dataset metadata has format ${String(parsed.format)}; this build reads format 1`,
      { reason: 'MANIFEST_UNSUPPORTED' },
    );
  }
  return parsed;
}
