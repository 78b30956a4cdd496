import { existsSync, mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Failure } from '@medmesh/errors';
import { model } from '@medmesh/proto';
import { tempDir, waitFor, writeTinyModel } from '@medmesh/testkit';
import { tinyTokenizerJson } from '@medmesh/text/testing';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { startHub, type TestHub } from '../test/hub-server.ts';
import { filesOf, writeModelFolder } from '../test/model-fixture.ts';
import { type RunningQuantizer, startQuantizerProcess } from '../test/running-quantizer.ts';

let hub: TestHub;
let quantizer: RunningQuantizer;
let files: Record<string, Buffer>;
let weightBytes: number;
let ids = 0;
/** A model id that no test used. */
const newId = () => {
  ids += 1;
  return `model-${ids}`;
};
const nameOf = (modelId: string) => `projects/p/models/${modelId}`;
const parent = 'projects/p';

beforeAll(async () => {
  hub = await startHub();
  quantizer = await startQuantizerProcess({
    env: { HUGGING_FACE_URL: hub.url, MODELSCOPE_URL: hub.url, HUGGING_FACE_TOKEN: 'hf-secret', LOG_LEVEL: 'trace' },
  });
  files = filesOf(await writeModelFolder(undefined, { hidden: 256, intermediate: 1024, layers: 4 }));
  weightBytes = files['model.safetensors']!.length;
});
afterAll(async () => {
  await quantizer.stop();
  await hub.close();
});
beforeEach(() => {
  hub.reset();
  hub.publish('acme/tiny', {
    ...files,
    'README.md': Buffer.from('# tiny'),
    'pytorch_model.bin': Buffer.from('pickle'),
  });
  hub.publish('acme/tiny', files, 'master');
});

async function failureOf(promise: Promise<unknown>): Promise<Failure> {
  const error = await promise.then(
    () => undefined,
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(Failure);
  return error as Failure;
}

/** No record, no staged file. Blobs that nothing refers to are nobody's. */
async function expectNothingLeft(modelId: string): Promise<void> {
  expect(await failureOf(quantizer.models().getModel({ name: nameOf(modelId) }))).toMatchObject({ code: 'not_found' });
  expect(quantizer.staged()).toEqual([]);
}

const importFolder = (dir: string, modelId = newId()) => quantizer.import({ modelId, uri: `file://${dir}` });

/** A folder within the import roots. */
const writeFolder = (options = {}) => writeModelFolder(join(quantizer.roots, newId()), options);

describe('from a hub', () => {
  test('a model is verified, stored and recorded with the commit it came from', async () => {
    const modelId = newId();
    const operation = await quantizer
      .models()
      .importModel({ parent, modelId, uri: 'hf://acme/tiny', displayName: 'Tiny' });
    const imported = await quantizer.finish(operation, model.Model);
    const commit = hub.commitOf('acme/tiny', 'main');
    expect(imported).toMatchObject({
      name: nameOf(modelId),
      displayName: 'Tiny',
      state: model.Model_State.READY,
      quantization: model.Quantization.NONE,
      modelType: 'qwen2',
      vocabularySize: 320,
      contextLength: 512,
      operation: operation.name,
      origin: { uri: 'hf://acme/tiny', revision: commit },
    });
    expect(imported.files.map((file) => file.path).toSorted()).toEqual(Object.keys(files).toSorted());
    for (const file of imported.files) {
      const blob = Buffer.concat(await Array.fromAsync(quantizer.store.readBlob(file.digest)));
      expect(blob.equals(files[file.path]!)).toBe(true);
    }
    expect(await quantizer.metadata(operation)).toMatchObject({ model: nameOf(modelId), phase: 'STORE' });
    expect(await quantizer.models().getModel({ name: nameOf(modelId) })).toMatchObject({ digest: imported.digest });
    expect(quantizer.staged()).toEqual([]);
  });

  test('only what is needed is fetched, once, and the token stays with the hub', async () => {
    await quantizer.import({ modelId: newId(), uri: 'hf://acme/tiny' });
    expect(hub.bytesSent('model.safetensors')).toBe(weightBytes);
    for (const file of ['pytorch_model.bin', 'README.md']) expect(hub.bytesSent(file)).toBe(0);
    const [cdn, ...more] = hub.requests.filter((seen) => seen.server === 'cdn');
    expect(more).toEqual([]);
    expect(cdn!.headers).not.toHaveProperty('authorization');
    expect(
      hub.requests.filter((seen) => seen.server === 'hub').map((seen) => seen.headers.authorization),
    ).not.toContain(undefined);
    expect(quantizer.process().stdout()).not.toContain('hf-secret');
  });

  test('the same files give the same model, whatever they came by', async () => {
    const dir = await writeModelFolder(join(quantizer.roots, newId()), { hidden: 256, intermediate: 1024, layers: 4 });
    const digests = new Set<string>();
    for (const uri of ['hf://acme/tiny', 'modelscope://acme/tiny', `file://${dir}`]) {
      digests.add((await quantizer.import({ modelId: newId(), uri })).digest);
    }
    expect(digests.size).toBe(1);
  });

  test('ModelScope’s commit is recorded and no token of another hub is sent there', async () => {
    const imported = await quantizer.import({ modelId: newId(), uri: 'modelscope://acme/tiny', revision: 'master' });
    expect(imported.origin).toMatchObject({ revision: hub.commitOf('acme/tiny', 'master') });
    for (const { headers } of hub.requests) expect(headers.authorization).toBeUndefined();
  });

  test('a branch that moves during the download does not mix two commits', async () => {
    const commit = hub.commitOf('acme/tiny', 'main');
    hub.spoil('model.safetensors', { kind: 'slow', bytesPerSecond: 8_000_000 });
    const importing = quantizer.import({ modelId: newId(), uri: 'hf://acme/tiny' });
    await waitFor(() => hub.bytesSent('model.safetensors') > 100_000, { timeoutMs: 30_000 });
    hub.publish(
      'acme/tiny',
      filesOf(await writeModelFolder(undefined, { hidden: 256, intermediate: 1024, layers: 4, seed: 2 })),
    );
    const imported = await importing;
    expect(imported.origin?.revision).toBe(commit);
    const weights = imported.files.find((file) => file.path === 'model.safetensors')!;
    const blob = Buffer.concat(await Array.fromAsync(quantizer.store.readBlob(weights.digest)));
    expect(blob.equals(files['model.safetensors']!)).toBe(true);
  });

  test('a connection that breaks twice is taken up where it broke', async () => {
    hub.spoil('model.safetensors', { kind: 'cut', afterBytes: 1_000_000, times: 2 });
    await quantizer.import({ modelId: newId(), uri: 'modelscope://acme/tiny' });
    const pieces = hub.requests.filter((seen) => seen.server === 'cdn');
    expect(pieces.map((seen) => seen.status)).toEqual([200, 206, 206]);
    expect(hub.bytesSent('model.safetensors')).toBeLessThan(weightBytes + 200_000);
  });

  test('a hub that ignores ranges costs time, not correctness', async () => {
    hub.spoil('model.safetensors', { kind: 'cut', afterBytes: 1_000_000 });
    hub.spoil('model.safetensors', { kind: 'ignore-range' });
    expect((await quantizer.import({ modelId: newId(), uri: 'hf://acme/tiny' })).state).toBe(model.Model_State.READY);
  });

  test('a hub that is busy for a moment is asked again', async () => {
    hub.fail(429, 1, { 'retry-after': '1' });
    hub.spoil('config.json', { kind: 'status', status: 503, times: 2 });
    expect((await quantizer.import({ modelId: newId(), uri: 'hf://acme/tiny' })).state).toBe(model.Model_State.READY);
  });

  test.each([
    ['another byte', 'hf', 'model.safetensors', { kind: 'wrong-byte' }],
    ['another byte in a small file', 'hf', 'tokenizer_config.json', { kind: 'wrong-byte' }],
    ['another byte', 'modelscope', 'tokenizer_config.json', { kind: 'wrong-byte' }],
    ['less than was published', 'hf', 'model.safetensors', { kind: 'missing-tail', bytes: 10 }],
    ['more than was published', 'modelscope', 'model.safetensors', { kind: 'extra-tail', bytes: 10 }],
  ] as const)('%s (%s, %s) is corrupt, nothing is left, and the id is free', async (_, scheme, file, fault) => {
    hub.spoil(file, fault);
    const modelId = newId();
    const uri = `${scheme}://acme/tiny`;
    expect(await failureOf(quantizer.import({ modelId, uri }))).toMatchObject({
      code: 'data_loss',
      reason: 'DOWNLOAD_CORRUPT',
    });
    await expectNothingLeft(modelId);
    hub.reset();
    hub.publish('acme/tiny', files);
    hub.publish('acme/tiny', files, 'master');
    expect((await quantizer.import({ modelId, uri })).state).toBe(model.Model_State.READY);
  });

  test('a listing with a path that leads out of the folder is refused, and nothing is written there', async () => {
    hub.forge((entries) => [
      ...entries,
      { type: 'file', oid: '0'.repeat(40), size: 5, path: '../../escaped.safetensors' },
    ]);
    const modelId = newId();
    expect(await failureOf(quantizer.import({ modelId, uri: 'hf://acme/tiny' }))).toMatchObject({
      code: 'data_loss',
      reason: 'HUB_ANSWER_INVALID',
    });
    await expectNothingLeft(modelId);
    expect(existsSync(join(quantizer.staging, '../../escaped.safetensors'))).toBe(false);
  });

  test('gated weights say what is missing', async () => {
    hub.protect('acme/tiny', 'gated', 'another token');
    const modelId = newId();
    expect(await failureOf(quantizer.import({ modelId, uri: 'hf://acme/tiny' }))).toMatchObject({
      code: 'permission_denied',
      reason: 'HUB_CREDENTIALS_REFUSED',
    });
    await expectNothingLeft(modelId);
  });

  test('a model or revision that does not exist is not found', async () => {
    expect(await failureOf(quantizer.import({ modelId: newId(), uri: 'hf://acme/none' }))).toMatchObject({
      code: 'not_found',
    });
    expect(
      await failureOf(quantizer.import({ modelId: newId(), uri: 'hf://acme/tiny', revision: 'v9' })),
    ).toMatchObject({ code: 'not_found' });
    expect(
      await failureOf(quantizer.import({ modelId: newId(), uri: 'modelscope://acme/tiny', revision: 'v9' })),
    ).toMatchObject({ code: 'not_found' });
  });

  test('a hub that no operator allowed is refused at once and not contacted', async () => {
    const stranger = await startHub();
    stranger.publish('acme/tiny', files);
    const request = { parent, modelId: newId(), uri: 'hf://acme/tiny', hubUrl: stranger.url };
    expect(await failureOf(quantizer.models().importModel(request))).toMatchObject({
      code: 'permission_denied',
      reason: 'HUB_NOT_ALLOWED',
    });
    expect(stranger.requests).toEqual([]);
    await stranger.close();
  });

  test('an import that is cancelled in the middle leaves nothing behind', async () => {
    hub.spoil('model.safetensors', { kind: 'slow', bytesPerSecond: 500_000 });
    const modelId = newId();
    const operation = await quantizer.models().importModel({ parent, modelId, uri: 'hf://acme/tiny' });
    await waitFor(() => hub.bytesSent('model.safetensors') > 200_000, { timeoutMs: 30_000 });
    expect((await quantizer.models().getModel({ name: nameOf(modelId) })).state).toBe(model.Model_State.PREPARING);
    await quantizer.operations.cancel(operation.name);
    expect(await failureOf(quantizer.finish(operation, model.Model))).toMatchObject({ code: 'cancelled' });
    await expectNothingLeft(modelId);
    await waitFor(() => hub.requests.every((seen) => seen.ended), { what: 'the download to end' });
    expect(hub.bytesSent('model.safetensors')).toBeLessThan(weightBytes);
  });
});

describe('from a folder', () => {
  test('no hub is contacted', async () => {
    const imported = await importFolder(await writeFolder());
    expect(imported).toMatchObject({ state: model.Model_State.READY, modelType: 'qwen2' });
    expect(hub.requests).toEqual([]);
  });

  test('a folder outside the import roots is refused, also behind a link', async () => {
    const outside = await writeModelFolder(tempDir('outside'));
    symlinkSync(outside, join(quantizer.roots, 'link'));
    for (const dir of [outside, join(quantizer.roots, 'link'), join(quantizer.roots, '..')]) {
      const modelId = newId();
      expect(await failureOf(importFolder(dir, modelId))).toMatchObject({
        code: 'permission_denied',
        reason: 'URI_NOT_ALLOWED',
      });
      await expectNothingLeft(modelId);
    }
  });

  /** Writes over a file of the folder. */
  const overwrite = (name: string, content: string | Uint8Array) => (dir: string) =>
    writeFileSync(join(dir, name), content);
  /** Changes the JSON header of model.safetensors; the data stays. */
  const header =
    (change: (tensors: Record<string, { dtype: string; shape: number[]; data_offsets: number[] }>) => void) =>
    (dir: string) => {
      const path = join(dir, 'model.safetensors');
      const bytes = readFileSync(path);
      const length = Number(bytes.readBigUInt64LE(0));
      const json = JSON.parse(bytes.subarray(8, 8 + length).toString()) as never;
      change(json);
      const text = Buffer.from(JSON.stringify(json));
      const size = Buffer.alloc(8);
      size.writeBigUInt64LE(BigInt(text.length));
      writeFileSync(path, Buffer.concat([size, text, bytes.subarray(8 + length)]));
    };
  const norm = 'model.norm.weight';
  const config = (fields: object) => (dir: string) => {
    const path = join(dir, 'config.json');
    writeFileSync(path, JSON.stringify({ ...(JSON.parse(readFileSync(path, 'utf8')) as object), ...fields }));
  };

  test.each<[string, (dir: string) => void, string, RegExp]>([
    ['truncated weights', (dir) => truncateSync(join(dir, 'model.safetensors'), 20_000), 'data_loss', /safetensors/],
    [
      'a header longer than the file',
      overwrite('model.safetensors', Buffer.from('ffffffffffffff7f7b7d', 'hex')),
      'data_loss',
      /safetensors/,
    ],
    [
      'weights that are a pickle under another name',
      overwrite('model.safetensors', Buffer.from('\x80\x04\x95medmesh')),
      'data_loss',
      /safetensors/,
    ],
    ['overlapping tensors', header((t) => (t[norm]!.data_offsets = [0, 128])), 'data_loss', /./],
    ['a shape whose product overflows', header((t) => (t[norm]!.shape = [2 ** 32, 2 ** 32])), 'data_loss', /./],
    ['a shape that is not the tensor’s size', header((t) => (t[norm]!.shape = [65])), 'data_loss', /./],
    [
      'a tensor that the config does not know',
      header((t) => Object.assign(t, { 'model.extra': t[norm], [norm]: undefined })),
      'data_loss',
      /./,
    ],
    [
      'a config with another width than the tensors',
      config({ hidden_size: 128 }),
      'data_loss',
      /config\.json calls for/,
    ],
    ['a config with more layers than there are', config({ num_hidden_layers: 3 }), 'data_loss', /lacks/],
    [
      'a config of an unknown architecture',
      config({ model_type: 'mamba', architectures: ['MambaForCausalLM'] }),
      'unimplemented',
      /mamba/,
    ],
    ['a config that is not JSON', overwrite('config.json', '{'), 'data_loss', /config\.json/],
    ['a tokenizer that is not JSON', overwrite('tokenizer.json', '{'), 'invalid_argument', /tokenizer\.json/],
    [
      'an index that names a shard that is not there',
      overwrite('model.safetensors.index.json', '{}'),
      'invalid_argument',
      /index\.json is there/,
    ],
  ])('%s are refused and nothing is left', async (_, damage, code, message) => {
    const dir = await writeFolder();
    damage(dir);
    const modelId = newId();
    const failure = await failureOf(importFolder(dir, modelId));
    expect(failure).toMatchObject({ code, message: expect.stringMatching(message) as string });
    await expectNothingLeft(modelId);
  });

  test('pickled weights are refused without being read', async () => {
    const dir = join(quantizer.roots, newId());
    mkdirSync(dir);
    writeFileSync(join(dir, 'config.json'), '{}');
    writeFileSync(join(dir, 'tokenizer.json'), '{}');
    writeFileSync(join(dir, 'pytorch_model.bin'), 'pickle');
    const failure = await failureOf(importFolder(dir));
    expect(failure).toMatchObject({ code: 'invalid_argument', reason: 'MODEL_FILES_INVALID' });
    expect(failure.message).toMatch(/pickle.*convert them to safetensors/);
  });

  test('a tokenizer with more tokens than the model has rows is refused', async () => {
    const dir = await writeFolder();
    writeTinyModel(dir, { vocab: 270 });
    expect(Object.keys((tinyTokenizerJson()['model'] as { vocab: object }).vocab)).toHaveLength(266);
    const modelId = newId();
    const failure = await failureOf(importFolder(dir, modelId));
    expect(failure).toMatchObject({ code: 'invalid_argument', reason: 'TOKENIZER_MISMATCH' });
    expect(failure.message).toMatch(/tokenizer has 271 tokens, the model only 270/);
    await expectNothingLeft(modelId);
  });
});

describe('ids', () => {
  test('a taken id is refused at once, with a request_id too; a repeat of the request that took it is not', async () => {
    const dir = await writeFolder();
    const modelId = newId();
    const first = { parent, modelId, uri: `file://${dir}`, requestId: crypto.randomUUID() };
    const imported = await quantizer.import(first);
    expect((await quantizer.models().importModel(first)).name).toBe(imported.operation);
    const request = { parent, modelId, uri: `file://${dir}` };
    expect(await failureOf(quantizer.models().importModel(request))).toMatchObject({
      code: 'already_exists',
      reason: 'MODEL_EXISTS',
    });
    const other = { ...request, requestId: crypto.randomUUID() };
    for (let attempt = 1; attempt <= 2; attempt += 1) {
      expect(await failureOf(quantizer.models().importModel(other))).toMatchObject({
        code: 'already_exists',
        reason: 'MODEL_EXISTS',
      });
    }
    expect(await quantizer.models().getModel({ name: imported.name })).toMatchObject({
      digest: imported.digest,
      operation: imported.operation,
    });
  });

  test('two imports of one id at the same time: one wins', async () => {
    const uri = `file://${await writeFolder()}`;
    const modelId = newId();
    const results = await Promise.allSettled([quantizer.import({ modelId, uri }), quantizer.import({ modelId, uri })]);
    expect(results.map((result) => result.status).toSorted()).toEqual(['fulfilled', 'rejected']);
    expect((await quantizer.models().getModel({ name: nameOf(modelId) })).state).toBe(model.Model_State.READY);
  });

  test('a repeated request_id is the same operation, and with another body refused', async () => {
    const request = { parent, modelId: newId(), uri: `file://${await writeFolder()}`, requestId: crypto.randomUUID() };
    const [first, second] = await Promise.all([
      quantizer.models().importModel(request),
      quantizer.models().importModel(request),
    ]);
    expect(second.name).toBe(first.name);
    const imported = await quantizer.finish(first, model.Model);
    expect((await quantizer.models().importModel(request)).name).toBe(first.name);
    expect((await quantizer.models().getModel({ name: imported.name })).operation).toBe(first.name);
    const other = { ...request, modelId: newId() };
    expect(await failureOf(quantizer.models().importModel(other))).toMatchObject({
      code: 'invalid_argument',
      reason: 'REQUEST_ID_REUSED',
    });
  });

  test.each([
    { modelId: 'Upper' },
    { modelId: '' },
    { modelId: '../x' },
    { parent: 'projects/' },
    { parent: 'p' },
    { requestId: 'no uuid' },
    { uri: 'hf://x' },
  ])('%j is refused before anything is begun', async (fields) => {
    const request = { parent, modelId: newId(), uri: 'hf://acme/tiny', requestId: crypto.randomUUID(), ...fields };
    expect(await failureOf(quantizer.models().importModel(request))).toMatchObject({ code: 'invalid_argument' });
    expect(hub.requests).toEqual([]);
  });
});

describe('models', () => {
  test('are listed by name, downloaded file by file, and deleted', async () => {
    const imported = await quantizer.import({
      parent: 'projects/q',
      modelId: 'b-2.5',
      uri: `file://${await writeFolder()}`,
    });
    const second = await quantizer.import({
      parent: 'projects/q',
      modelId: 'a',
      uri: `file://${await writeFolder({ seed: 3 })}`,
    });
    const models = quantizer.models();
    expect((await models.listModels({ parent: 'projects/q' })).models.map((m) => m.name)).toEqual([
      second.name,
      imported.name,
    ]);
    const file = imported.files.find(({ path }) => path === 'model.safetensors')!;
    const chunks = await Array.fromAsync(
      models.downloadModelFile({ name: imported.name, path: file.path }),
      ({ chunk }) => chunk,
    );
    expect(Buffer.concat(chunks)).toHaveLength(file.sizeBytes);
    const missing = Array.fromAsync(models.downloadModelFile({ name: imported.name, path: '../config.json' }));
    expect(await failureOf(missing)).toMatchObject({ code: 'not_found' });
    expect(await failureOf(models.deleteModel({ name: imported.name, etag: '"999"' }))).toMatchObject({
      code: 'aborted',
    });
    await models.deleteModel({ name: imported.name, etag: (await models.getModel({ name: imported.name })).etag });
    expect((await models.listModels({ parent: 'projects/q' })).models.map((m) => m.name)).toEqual([second.name]);
  });
});
