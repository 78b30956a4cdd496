import { lifecycle } from '@medmesh/proto';
import { expect, test } from 'vitest';
import { canonicalJson, specDigest } from './spec-digest.ts';

test('equal values give equal bytes, whatever the order of their keys', () => {
  expect(canonicalJson({ b: [1, { d: 1, c: 'x' }], a: null, e: undefined })).toBe('{"a":null,"b":[1,{"c":"x","d":1}]}');
});

test('a spec has one digest, and another spec another', () => {
  const spec = lifecycle.ResolvedSpec.fromPartial({ baseModel: 'projects/p/models/m', seed: 3407 });
  const again = lifecycle.ResolvedSpec.decode(lifecycle.ResolvedSpec.encode(spec).finish());
  expect(specDigest(again)).toBe(specDigest(spec));
  expect(specDigest({ ...spec, seed: 1 })).not.toBe(specDigest(spec));
  expect(specDigest(spec)).toMatch(/^sha256:[0-9a-f]{64}$/);
});
