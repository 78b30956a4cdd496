import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { Failure } from '@medmesh/errors';
import { createLogger } from '@medmesh/log';
import { dataset, inference, longrunning } from '@medmesh/proto';
import { bind, createClient, createHealth, type RunningServer, type ServiceBinding, startServer } from '@medmesh/rpc';
import { freePort, repositoryRoot, spawnProcess, tempDir, waitFor } from '@medmesh/testkit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { backends, routes } from '../src/routes.ts';

type Backend = (typeof backends)[number];
type Definition = (typeof routes)[Backend][number];

const log = createLogger({ service: 'test', level: 'silent' });
const main = resolve(import.meta.dirname, '../src/main.ts');

/** A backend that answers every method with a failure that names the backend and the method. */
function telling(backend: Backend): ServiceBinding[] {
  return routes[backend].map((definition: Definition) =>
    bind(
      definition as never,
      Object.fromEntries(
        Object.entries(definition.methods).map(([key, { name, responseStream }]) => {
          const tell = (): never => {
            throw new Failure('failed_precondition', `${backend} ${name}`, {
              reason: 'TOLD',
              fields: [{ field: 'told', description: backend }],
              metadata: { backend },
            });
          };
          const stream = async function* () {
            yield tell();
          };
          return [key, responseStream ? stream : async () => tell()];
        }),
      ) as never,
    ),
  );
}

const serve = (services: ServiceBinding[], port = 0): Promise<RunningServer> =>
  startServer({ host: '127.0.0.1', port, services, log, health: createHealth() });

async function startGateway(addresses: Record<Backend, string>) {
  const portFile = join(tempDir('gateway'), 'ports.json');
  const child = await spawnProcess({
    command: process.execPath,
    args: ['--import', `${repositoryRoot}/libs/telemetry/src/register.ts`, main],
    cwd: resolve(import.meta.dirname, '..'),
    env: { ...addresses, GRPC_PORT: '0', PORT_FILE: portFile, SHUTDOWN_GRACE_MS: '20000' },
    ready: /gateway is ready/,
  });
  const ports = JSON.parse(await readFile(portFile, 'utf8')) as { grpc: number; metrics: number };
  return {
    child,
    address: `127.0.0.1:${ports.grpc}`,
    http: (path: string) => fetch(`http://127.0.0.1:${ports.metrics}${path}`),
  };
}

let servers: RunningServer[];
let gateway: Awaited<ReturnType<typeof startGateway>>;
beforeAll(async () => {
  servers = await Promise.all(backends.map((backend) => serve(telling(backend))));
  const addresses = Object.fromEntries(backends.map((b, i) => [b, `127.0.0.1:${servers[i]!.port}`]));
  gateway = await startGateway(addresses as Record<Backend, string>);
});
afterAll(async () => {
  await gateway?.child.stop();
  await Promise.all(servers.map((server) => server.drain(0)));
});

describe('the gateway', () => {
  const services = backends.flatMap((backend) =>
    routes[backend].map((definition: Definition) => [definition.fullName, backend, definition] as const),
  );

  test.each(services)('hands every method of %s to %s, and its error back whole', async (_, backend, definition) => {
    const client = createClient(definition as never, gateway.address) as unknown as Record<
      string,
      (request: unknown, options: object) => Promise<unknown> | AsyncIterable<unknown>
    >;
    async function* nothing() {}
    for (const [key, method] of Object.entries(definition.methods)) {
      const request = method.requestStream ? nothing() : {};
      const call = client[key]!(request, { deadlineMs: 30_000 });
      const answer = method.responseStream
        ? Array.fromAsync(call as AsyncIterable<unknown>)
        : (call as Promise<unknown>);
      await expect(answer, key).rejects.toMatchObject({
        code: 'failed_precondition',
        reason: 'TOLD',
        message: `${backend} ${method.name}`,
        fields: [{ field: 'told', description: backend }],
        metadata: { backend },
      });
    }
  });

  test('answers /healthz and counts the calls it forwards', async () => {
    expect((await gateway.http('/healthz')).status).toBe(200);
    expect(await (await gateway.http('/metrics')).text()).toContain('FineTuningService/');
  });

  test('without a backend answers for the others, and for it again once it is back', async () => {
    const port = await freePort();
    const others = `127.0.0.1:${servers[0]!.port}`;
    const lonely = await startGateway({
      LIFECYCLE_ADDR: others,
      FORMATTER_ADDR: `127.0.0.1:${port}`,
      QUANTIZER_ADDR: others,
      TRAINER_ADDR: others,
      INFERENCE_ADDR: others,
    });
    const datasets = createClient(dataset.DatasetServiceDefinition, lonely.address);
    const operations = createClient(longrunning.OperationsDefinition, lonely.address);
    const get = () => datasets.getDataset({ name: 'projects/p/datasets/d' }, { retry: false });
    await expect(get()).rejects.toMatchObject({ code: 'unavailable' });
    await expect(operations.getOperation({ name: 'operations/x' })).rejects.toMatchObject({ reason: 'TOLD' });
    const formatter = await serve(telling('FORMATTER_ADDR'), port);
    await waitFor(
      () =>
        get().then(
          () => false,
          (error: unknown) => error instanceof Failure && error.reason === 'TOLD',
        ),
      { what: 'the formatter to be found again' },
    );
    await formatter.drain(0);
    expect((await lonely.child.stop()).code).toBe(0);
  });

  test('carries a stream as it comes, and tells the backend when the reader leaves', async () => {
    const left = Promise.withResolvers<void>();
    const next = Promise.withResolvers<void>();
    const delta = (text: string): inference.GenerateEvent => ({
      event: {
        $case: 'delta',
        value: { choice: 0, channel: inference.Channel.ANSWER, text, tokenIds: [], logprobs: [] },
      },
    });
    const streaming = await serve([
      bind(inference.InferenceServiceDefinition, {
        async *generate(_, { signal }) {
          signal.addEventListener('abort', () => left.resolve(), { once: true });
          yield delta('one');
          await next.promise;
          yield delta('two');
          await new Promise(() => undefined);
        },
      }),
    ]);
    const address = `127.0.0.1:${streaming.port}`;
    const through = await startGateway(
      Object.fromEntries(backends.map((b) => [b, address])) as Record<Backend, string>,
    );
    const client = createClient(inference.InferenceServiceDefinition, through.address);
    const seen: string[] = [];
    for await (const { event } of client.generate({})) {
      if (event?.$case === 'delta') seen.push(event.value.text);
      // The second is made only after the first has arrived.
      next.resolve();
      if (seen.length === 2) break;
    }
    expect(seen).toEqual(['one', 'two']);
    await left.promise;
    expect((await through.child.stop()).code).toBe(0);
    await streaming.drain(0);
  });

  test('that is not told where its backends are says which, all at once, and does not start', async () => {
    const child = await spawnProcess({
      command: process.execPath,
      args: [main],
      env: { LIFECYCLE_ADDR: 'localhost', FORMATTER_ADDR: '127.0.0.1:1' },
    });
    expect((await child.exited).code).toBe(2);
    for (const name of ['LIFECYCLE_ADDR', 'QUANTIZER_ADDR', 'TRAINER_ADDR', 'INFERENCE_ADDR']) {
      expect(child.stderr()).toContain(name);
    }
    expect(child.stderr()).not.toContain('FORMATTER_ADDR');
  });
});
