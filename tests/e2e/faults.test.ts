import { randomUUID } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { demoBaseDir, demoRowsPath } from '@medmesh/demo';
import { lifecycle } from '@medmesh/proto';
import { waitFor } from '@medmesh/testkit';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type MeshFixture, startMeshFixture } from './mesh-fixture.ts';

const State = lifecycle.FineTuningJob_State;

let fixture: MeshFixture;
let modelName: string;
let versionName: string;

beforeAll(async () => {
  fixture = await startMeshFixture({
    roots: [demoBaseDir],
    env: { trainer: { METRIC_INTERVAL_MS: '0', LEASE_TTL_MS: '2000' }, lifecycle: { RECONCILE_INTERVAL_MS: '500' } },
  });
  const { client } = fixture;
  const model = await client.models.import({ modelId: 'base', uri: pathToFileURL(demoBaseDir).href });
  modelName = model.name;
  const upload = await client.datasets.upload(demoRowsPath);
  await client.datasets.ensure('rows');
  const version = await client.datasets.buildVersion('rows', {
    sources: [{ uri: upload.digest, fileName: upload.fileName }],
    model: modelName,
    maxTokens: 512,
  });
  versionName = version.name;
}, 180_000);

afterAll(() => fixture?.stop());

const jobOf = (steps: number, more: Parameters<typeof lifecycle.FineTuningJob.fromPartial>[0] = {}) => ({
  source: { $case: 'baseModel' as const, value: modelName },
  trainDatasets: [{ datasetVersion: versionName }],
  schedule: { steps, learningRate: 2e-3 },
  checkpointing: { intervalSteps: 10 },
  ...more,
});

/** The process that goes by this name now. */
function pidOf(name: string): number {
  const found = fixture.mesh.record.processes.find((process) => process.name === name);
  if (found === undefined) throw new Error(`no process ${name}`);
  return found.pid;
}

async function untilStep(job: string, step: number): Promise<void> {
  for await (const event of fixture.client.jobs.watch(job)) {
    if (event.payload?.$case === 'metrics' && (event.payload.value.progress?.step ?? 0) >= step) return;
  }
  throw new Error(`the job ended before step ${step}`);
}

const weightsDigest = async (adapter: string) =>
  (await fixture.client.adapters.get(adapter)).files.find((file) => file.path === 'adapter_model.safetensors')?.digest;

/** Events that end a job: there must be exactly one. */
async function terminalEvents(job: string): Promise<string[]> {
  const reasons: string[] = [];
  for await (const event of fixture.client.jobs.watch(job))
    if (/^JOB_(SUCCEEDED|FAILED|CANCELLED|EXPIRED)$/.test(event.reason)) reasons.push(event.reason);
  return reasons;
}

test('a trainer killed in the middle: the job goes on and ends bit for bit as an uninterrupted one', {
  timeout: 240_000,
}, async () => {
  const { client } = fixture;
  const plain = await client.jobs.waitFor((await client.jobs.create(jobOf(40), { id: 'plain' })).name);
  expect(plain.state).toBe(State.SUCCEEDED);

  const killed = await client.jobs.create(jobOf(40), { id: 'killed' });
  await untilStep(killed.name, 17);
  process.kill(pidOf('trainer'), 'SIGKILL');
  const done = await client.jobs.waitFor(killed.name);
  expect(done.state).toBe(State.SUCCEEDED);
  expect(done.attempt).toBe(2);
  expect(done.resolvedSpecDigest).toBe(plain.resolvedSpecDigest);
  expect(await weightsDigest('killed')).toBe(await weightsDigest('plain'));
  expect(await terminalEvents(killed.name)).toEqual(['JOB_SUCCEEDED']);
  expect(done.progress?.tokenCount).toBe(plain.progress?.tokenCount);
});

test('nats-server killed in the middle: the job continues when it is back', { timeout: 240_000 }, async () => {
  const { client } = fixture;
  const job = await client.jobs.create(jobOf(40), { id: 'broker' });
  await untilStep(job.name, 12);
  process.kill(pidOf('nats-server'), 'SIGKILL');
  const done = await client.jobs.waitFor(job.name);
  expect(done.state).toBe(State.SUCCEEDED);
  expect(await weightsDigest('broker')).toBe(await weightsDigest('plain'));
  expect(await terminalEvents(job.name)).toEqual(['JOB_SUCCEEDED']);
});

test('SIGTERM to the trainer: a checkpoint, the job back in the queue, and no step lost', {
  timeout: 240_000,
}, async () => {
  const { client } = fixture;
  const job = await client.jobs.create(jobOf(40), { id: 'drained' });
  await untilStep(job.name, 14);
  process.kill(pidOf('trainer'), 'SIGTERM');
  const done = await client.jobs.waitFor(job.name);
  expect(done.state).toBe(State.SUCCEEDED);
  expect(await weightsDigest('drained')).toBe(await weightsDigest('plain'));
});

test('a cancelled job ends CANCELLED, leaves no adapter, and its worker is free for the next', {
  timeout: 120_000,
}, async () => {
  const { client } = fixture;
  const job = await client.jobs.create(jobOf(100_000), { id: 'cancelled' });
  await untilStep(job.name, 2);
  await client.jobs.cancel(job.name);
  const done = await client.jobs.waitFor(job.name);
  expect(done.state).toBe(State.CANCELLED);
  expect(await terminalEvents(job.name)).toEqual(['JOB_CANCELLED']);
  await expect(client.adapters.get('cancelled')).rejects.toMatchObject({ code: 'not_found' });
  // Again: nothing changes.
  expect((await client.jobs.cancel(job.name)).state).toBe(State.CANCELLED);
  const next = await client.jobs.waitFor((await client.jobs.create(jobOf(2), { id: 'next' })).name);
  expect(next.state).toBe(State.SUCCEEDED);
  await expect(client.jobs.cancel('next')).rejects.toMatchObject({
    code: 'failed_precondition',
    reason: 'STATE_TRANSITION_NOT_ALLOWED',
  });
});

test('a paused job keeps a checkpoint and goes on from it, bit for bit', { timeout: 240_000 }, async () => {
  const { client } = fixture;
  const job = await client.jobs.create(jobOf(40), { id: 'paused' });
  await untilStep(job.name, 5);
  await client.jobs.pause(job.name);
  await waitFor(async () => (await client.jobs.get(job.name)).state === State.PAUSED, {
    timeoutMs: 60_000,
    what: 'the job to pause',
  });
  expect((await Array.fromAsync(client.jobs.checkpoints(job.name))).length).toBeGreaterThan(0);
  await client.jobs.resume(job.name);
  const done = await client.jobs.waitFor(job.name);
  expect(done.state).toBe(State.SUCCEEDED);
  expect(await weightsDigest('paused')).toBe(await weightsDigest('plain'));
});

test('a repeated request_id returns the first job; with another body it is refused', { timeout: 60_000 }, async () => {
  const { client } = fixture;
  const requestId = randomUUID();
  const first = await client.jobs.create(jobOf(1), { requestId });
  const again = await client.jobs.create(jobOf(1), { requestId });
  expect(again.name).toBe(first.name);
  expect(again.uid).toBe(first.uid);
  await expect(client.jobs.create(jobOf(2), { requestId })).rejects.toMatchObject({
    code: 'invalid_argument',
    reason: 'REQUEST_ID_REUSED',
  });
  await client.jobs.waitFor(first.name);
});

test('what a job cannot be is refused at once, and nothing is recorded', { timeout: 60_000 }, async () => {
  const { client } = fixture;
  const before = (await Array.fromAsync(client.jobs.list())).length;
  const rank0 = { adapterSpec: { kind: { $case: 'lora' as const, value: { rank: 0 } } } };
  await expect(client.jobs.create(jobOf(1, rank0))).rejects.toMatchObject({
    code: 'invalid_argument',
    fields: [{ field: 'fine_tuning_job.adapter_spec.lora.rank' }],
  });
  await expect(
    client.jobs.create(jobOf(1, { source: { $case: 'baseModel', value: client.models.name('nobody') } })),
  ).rejects.toMatchObject({ reason: 'RESOURCE_NOT_FOUND' });
  await expect(client.jobs.create(jobOf(2, { schedule: { steps: 2, warmupSteps: 3 } }))).rejects.toMatchObject({
    fields: [{ field: 'fine_tuning_job.schedule.warmup_steps' }],
  });
  const checked = await client.jobs.create(jobOf(7), { validateOnly: true });
  expect(checked).toMatchObject({ name: '', estimate: { totalSteps: 7, allowedToProceed: true } });
  expect((await Array.fromAsync(client.jobs.list())).length).toBe(before);
});

test('rows that cannot be used are counted and named by index, never by text', { timeout: 60_000 }, async () => {
  const { client, dir } = fixture;
  const good = { Question: 'What is first?', Complex_CoT: 'One is first.', Response: 'One.' };
  const lines = [
    JSON.stringify(good),
    '{"Question": "SECRETROW"',
    JSON.stringify({ Question: 'SECRETROW', Complex_CoT: 'x' }),
    JSON.stringify({ ...good, Question: '' }),
    JSON.stringify(good),
  ];
  const path = join(dir, 'bad.jsonl');
  writeFileSync(path, lines.join('\n'));
  const upload = await client.datasets.upload(path);
  const spec = { sources: [{ uri: upload.digest, fileName: upload.fileName }], model: modelName, maxTokens: 512 };
  const refused = await client.datasets.buildVersion('rows', spec).catch((error: unknown) => error);
  expect(refused).toMatchObject({ code: 'invalid_argument', reason: 'DATASET_INVALID' });
  expect(JSON.stringify(refused)).not.toContain('SECRETROW');
  const version = await client.datasets.buildVersion('rows', { ...spec, dropInvalid: true });
  expect(version.stats).toMatchObject({ rowCount: 5, usedRowCount: 1, droppedRowCount: 4 });
});
