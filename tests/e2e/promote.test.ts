import { pathToFileURL } from 'node:url';
import { demoBaseDir, demoRowsPath } from '@medmesh/demo';
import { lifecycle } from '@medmesh/proto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type MeshFixture, startMeshFixture } from './mesh-fixture.ts';

let fixture: MeshFixture;

beforeAll(async () => {
  fixture = await startMeshFixture({ roots: [demoBaseDir] });
}, 120_000);

afterAll(() => fixture?.stop());

test('a checkpoint becomes an adapter that is served as the model was at that step', { timeout: 240_000 }, async () => {
  const { client } = fixture;
  const source = await client.models.import({ modelId: 'base', uri: pathToFileURL(demoBaseDir).href });
  const base = await client.models.quantize({ sourceModel: source.name, modelId: 'nf4' });
  const upload = await client.datasets.upload(demoRowsPath);
  await client.datasets.ensure('rows');
  const version = await client.datasets.buildVersion('rows', {
    sources: [{ uri: upload.digest, fileName: upload.fileName }],
    model: base.name,
    maxTokens: 512,
  });
  const train = (id: string, steps: number) =>
    client.jobs.create(
      {
        source: { $case: 'baseModel', value: base.name },
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
  const job = await client.jobs.waitFor((await train('long', 6)).name);
  // The same run, ended where the checkpoint was taken: a constant learning rate does not know how long it will go on.
  const short = await client.jobs.waitFor((await train('short', 2)).name);

  const promoted = await client.jobs.promote('long', 2, 'early');
  expect(promoted).toMatchObject({
    name: 'projects/default/adapters/early',
    state: lifecycle.Adapter_State.ACTIVE,
    fineTuningJob: job.name,
    baseModel: base.name,
    rank: 4,
  });
  expect(promoted.files.map((file) => file.path).sort()).toEqual([
    'adapter_config.json',
    'adapter_model.safetensors',
    'medmesh.json',
  ]);
  expect((await client.adapters.get('early')).etag).toBe(promoted.etag);
  expect((await client.adapters.lineage('early')).fineTuningJob).toBe(job.name);

  const weights = async (name: string) =>
    (await client.adapters.get(name)).files.find((file) => file.path === 'adapter_model.safetensors')?.digest;
  expect(await weights('early')).toBe(await weights(short.adapter));
  expect(await weights('early')).not.toBe(await weights(job.adapter));
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
