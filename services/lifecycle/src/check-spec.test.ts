import { Failure } from '@medmesh/errors';
import { lifecycle } from '@medmesh/proto';
import { expect, test } from 'vitest';
import { checkSpec } from './check-spec.ts';
import { parseJobFilter } from './job-filter.ts';

const job = (fields: Parameters<typeof lifecycle.FineTuningJob.fromPartial>[0] = {}) =>
  lifecycle.FineTuningJob.fromPartial({
    trainDatasets: [{ datasetVersion: 'projects/p/datasets/d/versions/v-1' }],
    ...fields,
  });

function faults(fields: Parameters<typeof lifecycle.FineTuningJob.fromPartial>[0]): string[] {
  try {
    checkSpec(job(fields));
    return [];
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    return (error.fields ?? []).map((f) => f.field);
  }
}

const lora = (value: Parameters<typeof lifecycle.LoraSpec.fromPartial>[0]) => ({
  adapterSpec: { kind: { $case: 'lora' as const, value } },
});

test('a plain job passes', () => {
  expect(faults({})).toEqual([]);
});

test('rank 0 is refused by its path, with what is allowed', () => {
  expect(() => checkSpec(job(lora({ rank: 0 })))).toThrow(
    'fine_tuning_job.adapter_spec.lora.rank is 0; use a value from 1 to 256',
  );
});

test('every fault is named at once', () => {
  expect(
    faults({
      ...lora({ rank: 1000, alpha: -1, dropout: 1, targetModules: ['q_proj', 'nose'] }),
      optimizer: { kind: 'sgd', beta1: 2 },
      schedule: { kind: 'zigzag', learningRate: 0, steps: 5, epochs: 2 },
      batch: { gradientAccumulation: -1 },
    }),
  ).toEqual([
    'fine_tuning_job.adapter_spec.lora.rank',
    'fine_tuning_job.adapter_spec.lora.alpha',
    'fine_tuning_job.adapter_spec.lora.dropout',
    'fine_tuning_job.adapter_spec.lora.target_modules',
    'fine_tuning_job.optimizer.kind',
    'fine_tuning_job.optimizer.beta1',
    'fine_tuning_job.schedule.kind',
    'fine_tuning_job.schedule.learning_rate',
    'fine_tuning_job.schedule.epochs',
    'fine_tuning_job.batch.gradient_accumulation',
  ]);
});

test('what is not implemented is refused, not ignored', () => {
  expect(faults({ method: { $case: 'preference', value: { algorithm: 'dpo', beta: 0.1 } } })).toEqual([
    'fine_tuning_job.method.preference',
  ]);
  expect(faults({ adapterSpec: { kind: { $case: 'full', value: {} } } })).toEqual([
    'fine_tuning_job.adapter_spec.full',
  ]);
});

test('DoRA, whole modules and chosen layers pass; unknown and repeated ones do not', () => {
  expect(faults(lora({ dora: true, modulesToSave: ['lm_head', 'embed_tokens'], layers: [3, 1] }))).toEqual([]);
  expect(faults(lora({ modulesToSave: ['norm'], layers: [-1] }))).toEqual([
    'fine_tuning_job.adapter_spec.lora.modules_to_save',
    'fine_tuning_job.adapter_spec.lora.layers',
  ]);
  expect(faults(lora({ modulesToSave: ['lm_head', 'lm_head'], layers: [1, 1] }))).toEqual([
    'fine_tuning_job.adapter_spec.lora.modules_to_save',
    'fine_tuning_job.adapter_spec.lora.layers',
  ]);
});

test('a filter chooses by state and label, and one that cannot be read says how to write it', () => {
  const running = job({ state: lifecycle.FineTuningJob_State.RUNNING, labels: { ward: 'a' } });
  expect(parseJobFilter('state="RUNNING" AND labels.ward="a"')(running)).toBe(true);
  expect(parseJobFilter('state="STATE_RUNNING"')(running)).toBe(true);
  expect(parseJobFilter('labels.ward="b"')(running)).toBe(false);
  expect(() => parseJobFilter('state=RUNNING')).toThrow('write state="RUNNING"');
});
