import { lifecycle, model } from '@medmesh/proto';
import { expect, test } from 'vitest';
import { estimate } from './estimate.ts';
import { targetModules } from './limits.ts';

const base = model.Model.fromPartial({ parameterCount: 1_500_000_000, vocabularySize: 150_000, weightBytes: 3e9 });
const trained = (lora: Parameters<typeof lifecycle.LoraSpec.fromPartial>[0]) => {
  const spec = lifecycle.ResolvedSpec.fromPartial({
    adapterSpec: { kind: { $case: 'lora', value: { rank: 16, targetModules: [...targetModules], ...lora } } },
  });
  return estimate(spec, base, { rows: 10, tokens: 1000, longestRow: 200 }, 0).trainableParameterCount;
};

test('magnitudes and whole modules count as trained, layers left out do not', () => {
  const plain = trained({});
  expect(trained({ dora: true })).toBeGreaterThan(plain);
  expect(trained({ dora: true })).toBeLessThan(1.1 * plain);
  const whole = trained({ modulesToSave: ['lm_head'] });
  expect(whole - plain).toBeGreaterThan(150_000 * 1_000);
  expect(trained({ modulesToSave: ['lm_head', 'embed_tokens'] }) - whole).toBe(whole - plain);
  expect(trained({ layers: [0] })).toBeLessThan(plain / 10);
});
