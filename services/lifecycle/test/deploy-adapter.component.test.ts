import { Failure } from '@medmesh/errors';
import { createLogger } from '@medmesh/log';
import { lifecycle } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { freePort } from '@medmesh/testkit';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type BaseFacts, withWeightsOf } from '../../inference/test/model-fixture.ts';
import {
  type InferenceWorld,
  openInferenceWorld,
  type RunningInference,
} from '../../inference/test/running-inference.ts';
import { deployAdapter } from '../src/deploy-adapter.ts';
import type { LifecycleDeps } from '../src/deps.ts';

const State = lifecycle.AdapterDeployment_State;

let world: InferenceWorld;
let base: BaseFacts;
let holding: RunningInference;
let other: RunningInference;
let empty: RunningInference;
beforeAll(async () => {
  world = await openInferenceWorld();
  base = await world.putBase('base', 1);
  holding = await world.start({ PRELOAD_BASES: base.name });
  other = await world.start({ PRELOAD_BASES: base.name });
  empty = await world.start();
});
afterAll(() => world?.close());

/** Deploys to these servers, and tells what became of each in the end. */
async function deploy(
  name: string,
  addresses: string[],
  signal = new AbortController().signal,
  onUpdate: (metadata: lifecycle.DeployAdapterMetadata) => void = () => undefined,
) {
  const log = createLogger({ service: 'test', level: 'silent' });
  const deps = { catalog: world.catalog, log, inferenceAddresses: addresses.join(',') };
  let servers: lifecycle.AdapterDeployment[] = [];
  const update = (metadata: lifecycle.DeployAdapterMetadata) => {
    servers = structuredClone(metadata.servers);
    onUpdate(metadata);
    return Promise.resolve();
  };
  const outcome = await deployAdapter(
    // All that deploying asks of them.
    deps as unknown as LifecycleDeps & { inferenceAddresses: string },
    { name, requestId: '' },
    update,
    signal,
  ).catch((error: unknown) => error);
  return { outcome, of: (address: string) => servers.find(({ server }) => server === address) };
}
const loadedIn = async ({ admin }: RunningInference) =>
  (await admin.listLoadedAdapters({})).adapters.map(({ adapter, pinned }) => [adapter, pinned]);

test('an adapter is made ready and kept on every server that holds its base, and doing it again changes nothing', async () => {
  const adapter = await world.putAdapter('first', base, 11);
  const all = [holding, other, empty].map(({ address }) => address);
  for (const again of [false, true]) {
    const { outcome, of } = await deploy(adapter.name, all);
    expect(outcome).toMatchObject({ name: adapter.name, digest: adapter.digest });
    for (const { address } of [holding, other])
      expect(of(address)).toMatchObject({
        state: State.READY,
        alreadyLoaded: again,
        parityTokenCount: 39,
        parityMeanDifference: expect.closeTo(0, 4),
      });
    expect(of(empty.address)).toMatchObject({ state: State.NOT_SERVED });
  }
  expect(await loadedIn(holding)).toEqual([[adapter.name, true]]);
  expect(await loadedIn(empty)).toEqual([]);
});

test('what cannot be deployed says where and why, and servers that have it keep it', async () => {
  const adapter = await world.putAdapter('second', base, 12);
  const dead = `127.0.0.1:${await freePort()}`;
  const partly = await deploy(adapter.name, [holding.address, dead]);
  expect(partly.outcome).toMatchObject({
    code: 'failed_precondition',
    reason: 'DEPLOYMENT_INCOMPLETE',
    message: expect.stringContaining('ready on 1 of 2 servers'),
    metadata: { servers: dead },
  });
  expect(partly.of(dead)).toMatchObject({ state: State.FAILED });
  expect(await loadedIn(holding)).toContainEqual([adapter.name, true]);

  const broken = await world.recordAdapter('broken', base, {
    dir: withWeightsOf(adapter.dir, (await world.putAdapter('third', base, 13)).dir),
    templateDigest: adapter.templateDigest,
  });
  const refused = await deploy(broken.name, [holding.address]);
  expect(refused.outcome).toMatchObject({ reason: 'DEPLOYMENT_INCOMPLETE' });
  expect(refused.of(holding.address)?.error?.message).toContain('parity probes');

  expect((await deploy(adapter.name, [empty.address])).outcome).toMatchObject({ reason: 'BASE_NOT_SERVED' });
  expect((await deploy(adapter.name, [])).outcome).toMatchObject({ reason: 'NO_INFERENCE_SERVERS' });
  expect((await deploy('projects/p/adapters/none', [empty.address])).outcome).toMatchObject({ code: 'not_found' });
  await world.catalog.adapters.modify(keyOf(broken.name), (record) => ({
    ...record,
    state: lifecycle.Adapter_State.REVOKED,
  }));
  expect((await deploy(broken.name, [holding.address])).outcome).toMatchObject({ reason: 'ADAPTER_REVOKED' });
});

test('a cancelled deployment takes the adapter out where it has loaded it, and leaves it where it was', async () => {
  const adapter = await world.putAdapter('fourth', base, 14);
  expect((await deploy(adapter.name, [other.address])).outcome).not.toBeInstanceOf(Error);
  const cancel = new AbortController();
  const cancelled = new Failure('cancelled', 'the operation was cancelled', { reason: 'OPERATION_CANCELLED' });
  // As soon as it is ready where it was not before, while the operation waits for the other server.
  const { outcome, of } = await deploy(adapter.name, [holding.address, other.address], cancel.signal, ({ servers }) => {
    if (servers.some(({ server, state }) => server === holding.address && state === State.READY))
      cancel.abort(cancelled);
  });
  expect(outcome).toBe(cancelled);
  expect(of(holding.address)).toMatchObject({ state: State.READY, alreadyLoaded: false });
  expect((await loadedIn(holding)).map(([name]) => name)).not.toContain(adapter.name);
  expect(await loadedIn(other)).toContainEqual([adapter.name, true]);
});
