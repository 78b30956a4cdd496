import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { demoBaseDir, demoRowsPath } from '@medmesh/demo';
import { lifecycle, model } from '@medmesh/proto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type MeshFixture, startMeshFixture } from './mesh-fixture.ts';

let fixture: MeshFixture;
/** As it was imported, in 16 bits, and quantized. */
let source: model.Model;
let base: model.Model;
/** Six steps, and the same run ended after two: a constant learning rate does not know how long it will go on. */
let long: lifecycle.FineTuningJob;
let short: lifecycle.FineTuningJob;
/** The same two steps on the base as it was imported: QLoRA, so it is quantized for the training alone. */
let onSixteenBits: lifecycle.FineTuningJob;

beforeAll(async () => {
  fixture = await startMeshFixture({ roots: [demoBaseDir] });
  const { client } = fixture;
  source = await client.models.import({ modelId: 'base', uri: pathToFileURL(demoBaseDir).href });
  base = await client.models.quantize({ sourceModel: source.name, modelId: 'nf4' });
  const upload = await client.datasets.upload(demoRowsPath);
  await client.datasets.ensure('rows');
  const version = await client.datasets.buildVersion('rows', {
    sources: [{ uri: upload.digest, fileName: upload.fileName }],
    model: base.name,
    maxTokens: 512,
  });
  const train = async (id: string, steps: number, on = base) => {
    const { name } = await client.jobs.create(
      {
        source: { $case: 'baseModel', value: on.name },
        trainDatasets: [{ datasetVersion: version.name }],
        adapterSpec: { kind: { $case: 'lora', value: { rank: 4, alpha: 4 } } },
        schedule: { kind: 'constant', learningRate: 3e-3, warmupSteps: 0, steps },
        batch: { microBatchRows: 1, gradientAccumulation: 1 },
        checkpointing: { intervalSteps: 2, keep: 3 },
        publish: { adapterId: id },
        seed: 7,
      },
      { id },
    );
    return client.jobs.waitFor(name);
  };
  long = await train('long', 6);
  short = await train('short', 2);
  onSixteenBits = await train('on-sixteen-bits', 2, source);
}, 240_000);

afterAll(() => fixture?.stop());

test('a checkpoint becomes an adapter that is served as the model was at that step', { timeout: 120_000 }, async () => {
  const { client } = fixture;
  const promoted = await client.jobs.promote('long', 2, 'early');
  expect(promoted).toMatchObject({
    name: 'projects/default/adapters/early',
    state: lifecycle.Adapter_State.ACTIVE,
    fineTuningJob: long.name,
    baseModel: base.name,
    rank: 4,
  });
  expect(promoted.files.map((file) => file.path).sort()).toEqual([
    'adapter_config.json',
    'adapter_model.safetensors',
    'medmesh.json',
  ]);
  expect((await client.adapters.get('early')).etag).toBe(promoted.etag);
  expect((await client.adapters.lineage('early')).fineTuningJob).toBe(long.name);

  const weights = async (name: string) =>
    (await client.adapters.get(name)).files.find((file) => file.path === 'adapter_model.safetensors')?.digest;
  expect(await weights('early')).toBe(await weights(short.adapter));
  expect(await weights('early')).not.toBe(await weights(long.adapter));
  // Serving replays the parity probes first.
  const ask = async (adapter: string) =>
    (
      await client.inference.answer(
        { question: 'What is acute appendicitis?' },
        { base: base.name, adapter: client.adapters.name(adapter), sampling: { temperature: 0, maxTokens: 24 } },
      )
    ).answer;
  expect(await ask('early')).toBe(await ask('short'));

  await expect(client.jobs.promote('long', 2, 'early')).rejects.toMatchObject({
    code: 'already_exists',
    reason: 'ADAPTER_EXISTS',
  });
  await expect(client.jobs.promote('long', 2, 'Not An Id')).rejects.toMatchObject({ code: 'invalid_argument' });
  await expect(client.jobs.promote('long', 2, '')).rejects.toMatchObject({ code: 'invalid_argument' });
  await expect(client.jobs.promote('long', 5, 'other')).rejects.toMatchObject({ code: 'not_found' });
});

test('an export is measured against what was trained', { timeout: 120_000 }, async () => {
  const { client, dir } = fixture;
  const uriOf = (name: string) => pathToFileURL(join(dir, name)).href;
  await client.adapters.export('long', uriOf('peft'));
  await client.adapters.export('short', uriOf('other'));
  const merged = await client.models.merge({ adapter: client.adapters.name('long'), modelId: 'merged' });
  await client.models.download(merged.name, join(dir, 'merged'));

  expect(await client.adapters.verifyExport('long', uriOf('peft'))).toBe(0);
  // bf16 weights are rounded once more after the sum: a fraction of what four steps of training change.
  const rounding = await client.adapters.verifyExport('long', uriOf('merged'));
  const training = await client.adapters.verifyExport('long', uriOf('other'));
  expect(rounding).toBeGreaterThan(0);
  expect(training).toBeGreaterThan(5 * rounding);

  const refused = (name: string, uri: string, failure: object) =>
    expect(client.adapters.verifyExport(name, uri)).rejects.toMatchObject(failure);
  await refused('long', 'https://example.org/x', { code: 'invalid_argument' });
  await refused('nobody', uriOf('peft'), { code: 'not_found' });

  const made = [];
  for (const format of [model.ExportFormat.GGUF_F16, model.ExportFormat.GGUF_Q8_0]) {
    const request = { name: base.name, adapter: client.adapters.name('long'), format, destinationUri: uriOf('gguf') };
    made.push((await client.models.export(request)).files[0]!.path);
  }
  for (const path of made) {
    const difference = await client.adapters.verifyExport('long', `${uriOf('gguf')}/${path}`);
    expect(difference).toBeGreaterThan(0);
    expect(difference).toBeLessThan(training);
  }
  // Two files: which of them?
  await refused('long', uriOf('gguf'), { code: 'invalid_argument', reason: 'MODEL_FILES_INVALID' });
  await refused('long', `${uriOf('gguf')}/none.gguf`, { code: 'not_found' });
  // It says of itself how far it is from what it was made of, which is another adapter.
  await refused('short', `${uriOf('gguf')}/${made[0]}`, { code: 'data_loss', reason: 'PARITY_MISMATCH' });
  await refused('long', pathToFileURL('/etc').href, { code: 'permission_denied' });
  mkdirSync(join(dir, 'pickled'));
  writeFileSync(join(dir, 'pickled', 'pytorch_model.bin'), 'x');
  await refused('long', uriOf('pickled'), { code: 'invalid_argument', reason: 'MODEL_FILES_INVALID' });
  writeFileSync(join(dir, 'peft', 'adapter_model.safetensors'), 'no tensors');
  await refused('long', uriOf('peft'), { code: 'data_loss' });
});

test('an adapter trained on a 16-bit base meets the 4-bit weights of its training when it is served', {
  timeout: 120_000,
}, async () => {
  const { client } = fixture;
  expect(source.digest).not.toBe(base.digest);
  const ask = async (who: { base: string; adapter?: string }) =>
    (
      await client.inference.answer(
        { question: 'What is acute appendicitis?' },
        { ...who, sampling: { temperature: 0, maxTokens: 24 } },
      )
    ).answer;
  const served = await ask({ base: source.name, adapter: onSixteenBits.adapter });
  expect(served).toBe(await ask({ base: base.name, adapter: short.adapter }));
  // Without the adapter the base answers as it is stored; both forms are in memory now, and it is still one base.
  expect(await ask({ base: source.name })).not.toBe('');
  const info = await client.raw.inferenceAdmin.getModelInfo({ base: source.name });
  expect(info.baseDigest).toBe(source.digest);
  await client.raw.inferenceAdmin.unloadBase({ base: source.name });
  await expect(client.raw.inferenceAdmin.getModelInfo({ base: source.name })).rejects.toMatchObject({
    code: 'not_found',
  });
});
