import { join } from 'node:path';
import { demoBaseDir, demoRowsPath } from '@medmesh/demo';
import { repositoryRoot, spawnProcess } from '@medmesh/testkit';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type MeshFixture, startMeshFixture } from './mesh-fixture.ts';

let fixture: MeshFixture;

beforeAll(async () => {
  fixture = await startMeshFixture({ roots: [demoBaseDir] });
}, 120_000);

afterAll(() => fixture?.stop());

/** Runs `./medmesh` to its end. */
async function run(...args: string[]) {
  const running = await spawnProcess({
    command: join(repositoryRoot, 'medmesh'),
    args,
    env: { MEDMESH_ADDRESS: undefined, OTEL_EXPORTER_OTLP_ENDPOINT: undefined },
  });
  const { code } = await running.exited;
  return { code, stdout: running.stdout(), stderr: running.stderr() };
}

/** The same against the fixture's gateway. */
const medmesh = (...args: string[]) => run('--address', fixture.mesh.record.gateway, ...args);

const json = async (...args: string[]) => {
  const { stdout, stderr, code } = await medmesh('--json', ...args);
  expect(code, stderr).toBe(0);
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
};

test('from a folder to an answer with nothing but the command', { timeout: 240_000 }, async () => {
  const [base] = await json('model', 'import', demoBaseDir, '--id', 'base');
  expect(base).toMatchObject({ name: 'projects/default/models/base', modelType: 'qwen2' });
  const [nf4] = await json('model', 'quantize', 'base', '--id', 'nf4');
  expect(nf4).toMatchObject({ quantization: 'QUANTIZATION_NF4_DOUBLE_QUANT' });
  const [version] = await json(
    'dataset',
    'create',
    demoRowsPath,
    '--id',
    'rows',
    '--model',
    'nf4',
    '--max-tokens',
    '512',
    '--validation',
    '0.1',
  );
  expect(version).toMatchObject({ state: 'STATE_READY' });
  const lines = await json(
    'finetune',
    '--model',
    'nf4',
    '--dataset',
    'rows',
    '--steps',
    '5',
    '--learning-rate',
    '1e-3',
    '--adapter-id',
    'first',
  );
  expect(lines.at(-1)).toMatchObject({
    state: 'STATE_SUCCEEDED',
    adapter: 'projects/default/adapters/first',
    progress: { step: 5 },
  });
  expect(lines.filter((line) => 'metrics' in line)).toHaveLength(5);
  const [answer] = await json('generate', '--adapter', 'first', '--max-tokens', '16', 'What is acute appendicitis?');
  expect(answer).toMatchObject({ finished: { usage: { promptTokenCount: expect.any(Number) } } });
  const [tokens] = await json('tokenize', '--model', 'nf4', 'acute appendicitis');
  expect(tokens).toMatchObject({ sequences: [{ ids: expect.any(Array) }] });
  const rendered = await medmesh('template', 'render', '--model', 'nf4', '--question', 'Why?', '--prompt-only');
  expect(rendered.stdout).toContain('Why?');
  const jobs = await medmesh('jobs', 'list');
  expect(jobs.stdout).toMatch(/SUCCEEDED\s+5\/5/);
  // Its base is in memory since it was asked; the adapter itself too, and from now on for good.
  const [deployed] = await json('adapter', 'deploy', 'first');
  expect(deployed).toMatchObject({
    adapter: 'projects/default/adapters/first',
    servers: [{ state: 'STATE_READY', alreadyLoaded: true, parityTokenCount: expect.any(Number) }],
  });
  const { adapters } = await fixture.client.raw.inferenceAdmin.listLoadedAdapters({});
  expect(adapters).toMatchObject([{ adapter: 'projects/default/adapters/first', pinned: true }]);
  const exported = await medmesh('adapter', 'export', 'first', join(fixture.dir, 'exported'));
  expect(exported.stdout).toContain('3 files in');
});

test('wrong use is told in one line, with exit code 2', { timeout: 60_000 }, async () => {
  const unknown = await medmesh('finetun');
  expect(unknown.code).toBe(2);
  expect(unknown.stderr).toContain('Did you mean finetune?');
  const missing = await medmesh('model', 'get', 'nobody');
  expect(missing).toMatchObject({ code: 2, stderr: 'medmesh: projects/default/models/nobody does not exist\n' });
  const asJson = await medmesh('--json', 'finetune', '--model', 'nf4', '--dataset', 'rows', '--rank', '0');
  expect(asJson.code).toBe(2);
  expect(JSON.parse(asJson.stderr)).toMatchObject({
    error: {
      code: 'invalid_argument',
      reason: 'FIELD_INVALID',
      fields: [{ field: 'fine_tuning_job.adapter_spec.lora.rank' }],
    },
  });
});

test('a gateway that does not answer is exit code 3', { timeout: 60_000 }, async () => {
  const { code, stderr } = await run('--address', '127.0.0.1:1', 'model', 'list');
  expect(code).toBe(3);
  expect(stderr).toMatch(/^medmesh: .*127\.0\.0\.1:1/);
});
