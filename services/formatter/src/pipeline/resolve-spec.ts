import { createHash } from 'node:crypto';
import { Failure, type FieldViolation } from '@medmesh/errors';
import { dataset } from '@medmesh/proto';
import { sourceFormat } from '../rows/source-format.ts';

const { LossMask, OverlongPolicy } = dataset;

const bounds = { sources: 256, evaluationSources: 256, maxTokens: [16, 131_072], validationFraction: 0.5 } as const;
const defaults = { maxTokens: 2048, splitSeed: 3407 } as const;

/**
 * The spec with every default written out. All faults are reported at once, as `invalid_argument` with one violation for
 * each field. The template and the columns' content are checked later, against the model and the rows.
 */
export function resolveSpec(spec: dataset.DatasetVersionSpec | undefined): dataset.DatasetVersionSpec {
  if (spec === undefined) throw fieldsInvalid([{ field: 'spec', description: 'is required' }]);
  const faults: FieldViolation[] = [];
  const require_ = (sound: boolean, field: string, description: string): void => {
    if (!sound) faults.push({ field: `spec.${field}`, description });
  };
  const { sources, maxTokens, validationFraction, rowLimit } = spec;
  require_(
    sources.length > 0 && sources.length <= bounds.sources,
    'sources',
    `has ${sources.length} files; give 1 to ${bounds.sources}`,
  );
  const { evaluationSources, nearDuplicateSimilarity } = spec;
  require_(
    evaluationSources.length <= bounds.evaluationSources,
    'evaluation_sources',
    `has ${evaluationSources.length} files; give at most ${bounds.evaluationSources}`,
  );
  const checkSource = (source: dataset.RowSource, field: string): void => {
    require_(
      source.uri !== '',
      `${field}.uri`,
      'is required: sha256:<hex> of an upload, s3://bucket/key or file:///path',
    );
    try {
      sourceFormat(source, `spec.${field}`);
    } catch (e) {
      if (!(e instanceof Failure) || e.fields === undefined) throw e;
      faults.push(...e.fields);
    }
  };
  for (const [i, source] of sources.slice(0, bounds.sources).entries()) checkSource(source, `sources[${i}]`);
  for (const [i, source] of evaluationSources.slice(0, bounds.evaluationSources).entries())
    checkSource(source, `evaluation_sources[${i}]`);
  require_(
    nearDuplicateSimilarity === 0 || (nearDuplicateSimilarity >= 0.5 && nearDuplicateSimilarity <= 1),
    'near_duplicate_similarity',
    `is ${nearDuplicateSimilarity}; use 0.5 to 1, or 0 for none`,
  );
  require_(spec.model !== '', 'model', 'is required: projects/{project}/models/{model}');
  const [least, most] = bounds.maxTokens;
  require_(
    maxTokens === 0 || (maxTokens >= least && maxTokens <= most),
    'max_tokens',
    `is ${maxTokens}; use ${least} to ${most}`,
  );
  require_(
    validationFraction >= 0 && validationFraction <= bounds.validationFraction,
    'validation_fraction',
    `is ${validationFraction}; use 0 to ${bounds.validationFraction}`,
  );
  require_(rowLimit >= 0, 'row_limit', `is ${rowLimit}; use 0 for all rows, or a positive number`);
  require_(known(LossMask, spec.lossMask), 'loss_mask', 'is not a value this version knows');
  require_(known(OverlongPolicy, spec.overlong), 'overlong', 'is not a value this version knows');
  if (faults.length > 0) throw fieldsInvalid(faults);
  return {
    ...spec,
    columns: spec.columns?.shape === undefined && (spec.columns?.subject ?? '') === '' ? undefined : spec.columns,
    template:
      spec.template?.template === undefined
        ? { template: { $case: 'builtin', value: 'medical-reasoning' } }
        : spec.template,
    lossMask: spec.lossMask === LossMask.UNSPECIFIED ? LossMask.COMPLETION : spec.lossMask,
    maxTokens: maxTokens === 0 ? defaults.maxTokens : maxTokens,
    overlong: spec.overlong === OverlongPolicy.UNSPECIFIED ? OverlongPolicy.ERROR : spec.overlong,
    splitSeed: spec.splitSeed === 0 ? defaults.splitSeed : spec.splitSeed,
  };
}

const known = (values: Readonly<Record<string, unknown>>, value: number): boolean =>
  value >= 0 && Object.values(values).includes(value);

function fieldsInvalid(fields: readonly FieldViolation[]): Failure {
  const list = fields.map((f) => `${f.field} ${f.description}`).join('; ');
  return new Failure('invalid_argument', list, { reason: 'FIELD_INVALID', fields });
}

/** `sha256:<hex>` over a resolved spec, whatever the order its fields came in. */
export function specDigest(spec: dataset.DatasetVersionSpec): string {
  const canonical = JSON.stringify(dataset.DatasetVersionSpec.toJSON(spec), (_, value: unknown) =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
      : value,
  );
  return `sha256:${createHash('sha256').update(canonical, 'utf8').digest('hex')}`;
}
