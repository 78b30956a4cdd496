import { credentials } from '@grpc/grpc-js';
import { dataset, lifecycle } from '@medmesh/proto';
import { createMetrics } from '@medmesh/telemetry';
import { createClient as createNiceClient } from 'nice-grpc';
import {
  HealthDefinition,
  HealthCheckResponse_ServingStatus as Status,
} from 'nice-grpc-server-health/lib/proto/grpc/health/v1/health.js';
import { expect, test } from 'vitest';
import { bind, createHealth, openChannel } from '../src/index.ts';
import { startTestServer } from './echo-service.ts';

test('health answers per name: live from the start, ready and every service when set', async () => {
  const health = createHealth();
  const server = await startTestServer([bind(dataset.TokenizerServiceDefinition, {})], { health });
  const client = createNiceClient(HealthDefinition, openChannel(server.address));
  const status = async (service: string) => (await client.check({ service })).status;
  const names = ['', 'live', 'ready', 'medmesh.dataset.v1.TokenizerService'];

  expect(await Promise.all(names.map(status))).toEqual([
    Status.NOT_SERVING,
    Status.SERVING,
    Status.NOT_SERVING,
    Status.NOT_SERVING,
  ]);
  health.set('', true);
  health.set('ready', true);
  expect(await Promise.all(names.map(status))).toEqual([
    Status.SERVING,
    Status.SERVING,
    Status.SERVING,
    Status.SERVING,
  ]);
  await expect(status('nobody')).rejects.toMatchObject({ code: 5 });
  await server.stop();
});

test('a health watcher is told of changes, and a drain ends it', async () => {
  const health = createHealth();
  const server = await startTestServer([], { health });
  const client = createNiceClient(HealthDefinition, openChannel(server.address));
  const seen: Status[] = [];
  const watched = (async () => {
    for await (const { status } of client.watch({ service: 'ready' })) {
      seen.push(status);
      if (status === Status.NOT_SERVING && seen.length === 1) health.set('ready', true);
      else await server.drain(2000);
    }
  })();
  await expect(watched).rejects.toMatchObject({ code: 14 });
  expect(seen).toEqual([Status.NOT_SERVING, Status.SERVING]);
});

test('probes are counted but not logged', async () => {
  const metrics = createMetrics('test');
  const server = await startTestServer([], { metrics });
  await createNiceClient(HealthDefinition, openChannel(server.address)).check({ service: 'live' });
  await server.stop();
  expect(server.logLines).toEqual([]);
  expect(await metrics.text()).toMatch(
    /rpc_server_call_duration_seconds_count\{.*rpc_method="grpc.health.v1.Health\/Check".*\} 1/,
  );
});

test('reflection lists the bound services and describes them', async () => {
  const { ServerReflectionService } = await import('nice-grpc-server-reflection');
  const { makeGenericClientConstructor } = await import('@grpc/grpc-js');
  const { ServerReflectionRequest } = (
    await import('nice-grpc-server-reflection/lib/proto/grpc/reflection/v1/reflection_pb.js')
  ).default;
  const server = await startTestServer([
    bind(lifecycle.FineTuningServiceDefinition, {}),
    bind(dataset.TokenizerServiceDefinition, {}),
  ]);
  const Client = makeGenericClientConstructor(ServerReflectionService as never, 'ServerReflection');
  const client = new Client(server.address, credentials.createInsecure());
  const ask = (fill: (request: InstanceType<typeof ServerReflectionRequest>) => void) =>
    new Promise<{ listed: string[]; files: number }>((resolve, reject) => {
      const call = (
        client['serverReflectionInfo'] as () => import('@grpc/grpc-js').ClientDuplexStream<
          unknown,
          import('nice-grpc-server-reflection/lib/proto/grpc/reflection/v1/reflection_pb.js').ServerReflectionResponse
        >
      ).call(client);
      call.on('error', reject);
      call.on('data', (answer) => {
        resolve({
          listed:
            answer
              .getListServicesResponse()
              ?.getServiceList()
              .map((s: { getName(): string }) => s.getName()) ?? [],
          files: answer.getFileDescriptorResponse()?.getFileDescriptorProtoList().length ?? 0,
        });
        call.end();
      });
      const request = new ServerReflectionRequest();
      fill(request);
      call.write(request);
    });

  const services = ['medmesh.lifecycle.v1.FineTuningService', 'medmesh.dataset.v1.TokenizerService'];
  expect((await ask((r) => r.setListServices(''))).listed).toEqual(services);
  for (const service of services) expect((await ask((r) => r.setFileContainingSymbol(service))).files).toBe(1);
  client.close();
  await server.stop();
});
