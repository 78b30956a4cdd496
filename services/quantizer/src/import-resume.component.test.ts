import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type longrunning, model } from '@medmesh/proto';
import { waitFor } from '@medmesh/testkit';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { startHub, type TestHub } from '../test/hub-server.ts';
import { filesOf, writeModelFolder } from '../test/model-fixture.ts';
import { type RunningQuantizer, startQuantizerProcess } from '../test/running-quantizer.ts';

let hub: TestHub;
let quantizer: RunningQuantizer;
let weightBytes: number;
const parent = 'projects/p';
const name = `${parent}/models/tiny`;
const request = { parent, modelId: 'tiny', uri: 'hf://acme/tiny' };

beforeEach(async () => {
  hub = await startHub();
  const files = filesOf(await writeModelFolder(undefined, { hidden: 256, intermediate: 1024, layers: 4 }));
  weightBytes = files['model.safetensors']!.length;
  hub.publish('acme/tiny', files);
  quantizer = await startQuantizerProcess({
    env: { HUGGING_FACE_URL: hub.url, MODELSCOPE_URL: hub.url, OPERATION_SILENCE_MS: '3000' },
  });
});
afterEach(async () => {
  await quantizer.stop();
  await hub.close();
});

const partialBytes = () => {
  for (const path of readdirSync(quantizer.staging, { recursive: true }).map(String)) {
    if (path.endsWith('model.safetensors.partial')) return statSync(join(quantizer.staging, path)).size;
  }
  return 0;
};

/** Begins an import at 2 MB/s and waits until a good part is there. */
async function importHalf(): Promise<longrunning.Operation> {
  hub.spoil('model.safetensors', { kind: 'slow', bytesPerSecond: 2_000_000 });
  const operation = await quantizer.models().importModel(request);
  await waitFor(() => partialBytes() > 1_000_000, { what: 'the first megabyte', timeoutMs: 30_000 });
  return operation;
}

/** The import went on where it was: of the weights hardly more was sent than they have. */
async function expectContinued(operation: longrunning.Operation): Promise<void> {
  const imported = await quantizer.finish(operation, model.Model);
  expect(imported).toMatchObject({ name, state: model.Model_State.READY, operation: operation.name });
  expect(hub.bytesSent('model.safetensors')).toBeLessThan(weightBytes + 1_000_000);
  expect(hub.requests.filter((seen) => seen.server === 'cdn').map((seen) => seen.status)).toEqual([200, 206]);
  expect(quantizer.staged()).toEqual([]);
}

test('an import whose process is killed goes on where it was in the next process', async () => {
  const operation = await importHalf();
  await quantizer.process().kill();
  hub.heal();
  await quantizer.startAgain();
  expect((await quantizer.models().getModel({ name })).state).toBe(model.Model_State.PREPARING);
  await expectContinued(operation);
});

test('an import whose process is stopped keeps its id and goes on in the next process', async () => {
  const operation = await importHalf();
  expect((await quantizer.process().stop()).code).toBe(0);
  hub.heal();
  await quantizer.startAgain();
  expect((await quantizer.models().getModel({ name })).state).toBe(model.Model_State.PREPARING);
  await expectContinued(operation);
});

test('an import that is cancelled while its process is dead does not keep its id', async () => {
  const operation = await importHalf();
  await quantizer.process().kill();
  hub.heal();
  await quantizer.operations.cancel(operation.name);
  await quantizer.startAgain();
  await expect(quantizer.finish(operation, model.Model)).rejects.toMatchObject({ code: 'cancelled' });
  expect(await quantizer.import(request)).toMatchObject({ name, state: model.Model_State.READY });
});

test('a hub that is away for longer than a request’s patience is asked again by the queue, and the import goes on where it was', {
  timeout: 120_000,
}, async () => {
  hub.spoil('model.safetensors', { kind: 'cut', afterBytes: 3_000_000 });
  hub.spoil('model.safetensors', { kind: 'status', status: 503, times: 7, after: 1 });
  const operation = await quantizer.models().importModel(request);
  const imported = await quantizer.finish(operation, model.Model);
  expect(imported.state).toBe(model.Model_State.READY);
  expect(hub.bytesSent('model.safetensors')).toBeLessThan(weightBytes + 500_000);
});
