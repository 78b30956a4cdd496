import { soak } from '@medmesh/cli/bench';
import { Metadata, tenantHeader } from '@medmesh/rpc';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { contextLength, vocabularySize } from './model-fixture.ts';
import { type InferenceWorld, openInferenceWorld } from './running-inference.ts';

let world: InferenceWorld;
beforeAll(async () => {
  world = await openInferenceWorld();
});
afterAll(() => world?.close());

test('a mixed load of three tenants ends every request with one status, and leaks no cache block', async () => {
  const base = await world.putBase('base', 1);
  const adapters = [await world.putAdapter('first', base, 11), await world.putAdapter('second', base, 12)];
  const server = await world.start({
    PRELOAD_BASES: base.name,
    MAX_RUNNING_REQUESTS: '6',
    MAX_WAITING_REQUESTS: '4',
    MAX_UNREAD_BYTES: '65536',
    LOG_LEVEL: 'warn',
  });
  const report = await soak(
    {
      callers: ['', 'north', 'south'].map((tenant) => ({
        inference: server.answers,
        metadata: Metadata({ [tenantHeader]: tenant }),
      })),
      admin: server.admin,
      model: {
        base: base.name,
        adapters: adapters.map(({ name }) => name),
        vocabularySize,
        contextLength: contextLength / 16,
      },
      seconds: 8,
      warmUpSeconds: 0,
      concurrency: 12,
      seed: 3,
      sampleMs: 1_000,
    },
    new AbortController().signal,
  );
  expect(report).toMatchObject({ wrong: {}, leakedBlocks: 0, leftRunning: 0 });
  const statuses = (kind: string) => Object.keys(report.ended[kind] ?? {});
  expect(statuses('whole')).toContain('ok');
  expect(statuses('cancel')).toContain('CANCELLED');
  expect(statuses('slow')).toContain('SLOW_READER');
  expect(report.requests).toBeGreaterThan(100);
  expect((await server.process.stop()).code).toBe(0);
});
