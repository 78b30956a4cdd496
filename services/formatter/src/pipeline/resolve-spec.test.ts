import { dataset } from '@medmesh/proto';
import { describe, expect, test } from 'vitest';
import { resolveSpec, specDigest } from './resolve-spec.ts';

const { LossMask, OverlongPolicy } = dataset;

describe('a spec', () => {
  const minimal = dataset.DatasetVersionSpec.fromPartial({
    sources: [{ uri: 'sha256:0', fileName: 'a.jsonl' }],
    model: 'projects/p/models/m',
  });

  test('gets every default written out', () => {
    expect(resolveSpec(minimal)).toMatchObject({
      template: { template: { $case: 'builtin', value: 'medical-reasoning' } },
      lossMask: LossMask.COMPLETION,
      maxTokens: 2048,
      overlong: OverlongPolicy.ERROR,
      splitSeed: 3407,
    });
  });

  test('has one digest, with defaults written out or not', () => {
    const written = dataset.DatasetVersionSpec.fromPartial({
      ...minimal,
      maxTokens: 2048,
      lossMask: LossMask.COMPLETION,
    });
    expect(specDigest(resolveSpec(written))).toBe(specDigest(resolveSpec(minimal)));
    expect(specDigest(resolveSpec({ ...minimal, maxTokens: 1024 }))).not.toBe(specDigest(resolveSpec(minimal)));
  });

  test('reports all faults at once', () => {
    const wrong = dataset.DatasetVersionSpec.fromPartial({
      sources: [{ uri: '', fileName: 'a.txt' }],
      maxTokens: 8,
      validationFraction: 0.9,
      rowLimit: -1,
    });
    const fields = [
      'spec.sources[0].uri',
      'spec.sources[0].format',
      'spec.model',
      'spec.max_tokens',
      'spec.validation_fraction',
      'spec.row_limit',
    ];
    expect(() => resolveSpec(wrong)).toThrow(
      expect.objectContaining({
        code: 'invalid_argument',
        reason: 'FIELD_INVALID',
        fields: fields.map((field) => expect.objectContaining({ field })),
      }),
    );
    expect(() => resolveSpec(undefined)).toThrow(/spec is required/);
    expect(() => resolveSpec({ ...minimal, validationFraction: Number.NaN })).toThrow(/validation_fraction/);
  });
});
