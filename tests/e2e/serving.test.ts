import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { demoBaseDir } from '@medmesh/demo';
import { inference } from '@medmesh/proto';
import { repositoryRoot, runProcess, waitFor } from '@medmesh/testkit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type MeshFixture, startMeshFixture } from './mesh-fixture.ts';

let fixture: MeshFixture;
let base: string;
beforeAll(async () => {
  fixture = await startMeshFixture({
    roots: [demoBaseDir],
    env: { inference: { MAX_RUNNING_REQUESTS: '2', MAX_WAITING_REQUESTS: '8', MAX_WAITING_TOKENS: '300' } },
  });
  const source = await fixture.client.models.import({ modelId: 'demo', uri: pathToFileURL(demoBaseDir).href });
  base = (await fixture.client.models.quantize({ sourceModel: source.name, modelId: 'nf4' })).name;
}, 120_000);
afterAll(() => fixture?.stop());

const tokens = (count: number, seed: number) =>
  Array.from({ length: count }, (_, i) => 5 + ((i * 31 + seed * 97) % 400));
type Request = Parameters<typeof inference.GenerateRequest.fromPartial>[0];
const request = (ids: number[], more: Request = {}): Request => ({
  model: { base },
  input: { $case: 'tokens', value: { ids } },
  ...more,
});
const complete = (ids: number[], more: Request = {}) => fixture.client.raw.inference.complete(request(ids, more));
const cachedOf = (result: inference.GenerateResult) => result.choices.map((c) => c.finished?.usage?.cachedTokenCount);

async function metrics(): Promise<(name: string) => number> {
  const text = await (await fetch(`http://${fixture.mesh.record.metrics['inference']}/metrics`)).text();
  return (name) => {
    const lines = text.split('\n').filter((line) => line.startsWith(`${name}{`));
    expect(lines, name).not.toHaveLength(0);
    return lines.reduce((sum, line) => sum + Number(/\} (\S+)/.exec(line)?.[1]), 0);
  };
}

describe('the prefix cache', () => {
  test('reads a prompt that was read before from its last token, with the same answer', async () => {
    const first = await complete(tokens(90, 1), { sampling: { maxTokens: 8 } });
    const again = await complete(tokens(90, 1), { sampling: { maxTokens: 8 } });
    expect(cachedOf(first)).toEqual([0]);
    expect(cachedOf(again)).toEqual([89]);
    expect(again.choices[0]?.tokenIds).toEqual(first.choices[0]?.tokenIds);
  });

  test('lets the choices of one request read their prompt once', async () => {
    const made = await complete(tokens(64, 2), { sampling: { maxTokens: 4, n: 4, temperature: 1, seed: 3 } });
    expect(cachedOf(made)).toEqual([0, 63, 63, 63]);
  });
});

describe('under load', () => {
  test('a queue full of tokens refuses with a time to come back, and urgent requests go first', async () => {
    const long = { sampling: { maxTokens: 300, ignoreEos: true, n: 16, temperature: 1 } };
    const stops = [new AbortController(), new AbortController()] as const;
    const hold = stops.map(({ signal }, i) =>
      fixture.client.raw.inference.complete(request(tokens(40, 3 + i), long), { signal }).catch(() => undefined),
    );
    const load = () => fixture.client.raw.inferenceAdmin.getLoad({});
    await waitFor(async () => (await load()).runningRequestCount === 2);
    const order: string[] = [];
    const waiting = [
      complete(tokens(200, 5), { priority: inference.Priority.BATCH, sampling: { maxTokens: 1 } }).then(() =>
        order.push('batch'),
      ),
    ];
    await waitFor(async () => (await load()).waitingRequestCount === 1);
    await expect(complete(tokens(150, 6))).rejects.toMatchObject({
      code: 'resource_exhausted',
      reason: 'QUEUE_FULL',
      retryAfterMs: expect.any(Number),
    });
    waiting.push(complete(tokens(20, 7), { sampling: { maxTokens: 1 } }).then(() => order.push('urgent')));
    await waitFor(async () => (await load()).waitingRequestCount === 2);
    expect((await load()).kvCacheUsage).toBeGreaterThan(0);
    // One place is free, so one waits for the other.
    stops[0].abort();
    await Promise.all(waiting);
    stops[1].abort();
    await Promise.all(hold);
    expect(order).toEqual(['urgent', 'batch']);
  });

  test('a cancelled request gives its cache back at once', async () => {
    const stop = new AbortController();
    const events = fixture.client.raw.inference.generate(
      request(tokens(64, 8), { sampling: { maxTokens: 300, ignoreEos: true } }),
      { signal: stop.signal },
    );
    await expect(
      (async () => {
        for await (const { event } of events) if (event?.$case === 'delta') stop.abort();
      })(),
    ).rejects.toThrow();
    await waitFor(async () => (await fixture.client.raw.inferenceAdmin.getLoad({})).kvCacheUsage === 0, {
      timeoutMs: 5_000,
    });
    expect((await fixture.client.raw.inferenceAdmin.getLoad({})).runningRequestCount).toBe(0);
  });

  test('metrics by vLLM’s names count what was asked', async () => {
    const before = await metrics();
    await complete(tokens(50, 9), { sampling: { maxTokens: 5, ignoreEos: true } });
    const after = await waitFor(async () => {
      const now = await metrics();
      return now('vllm:prefix_cache_queries_total') > before('vllm:prefix_cache_queries_total') ? now : undefined;
    });
    expect(after('vllm:generation_tokens_total') - before('vllm:generation_tokens_total')).toBe(5);
    expect(after('vllm:prompt_tokens_total') - before('vllm:prompt_tokens_total')).toBe(50);
    for (const name of ['time_to_first_token_seconds', 'e2e_request_latency_seconds', 'request_queue_time_seconds'])
      expect(after(`vllm:${name}_count`)).toBeGreaterThan(before(`vllm:${name}_count`));
    expect(after('vllm:prefix_cache_hits_total')).toBeGreaterThan(0);
    expect(after('vllm:num_requests_running')).toBe(0);
    expect(after('vllm:kv_cache_usage_perc')).toBe(0);
  });
});

test('`bench serve` measures times to the first token and between tokens, for each load', async () => {
  const text = await runProcess({
    command: join(repositoryRoot, 'medmesh'),
    args: [
      '--json',
      '--address',
      fixture.mesh.record.gateway,
      'bench',
      'serve',
      '--model',
      'nf4',
      '--requests',
      '6',
    ].concat(['--concurrency', '1,2', '--prompt-tokens', '40', '--new-tokens', '8', '--shared-tokens', '32']),
    timeoutMs: 120_000,
  });
  const { loads } = JSON.parse(text.trim().split('\n').at(-1)!) as { loads: Record<string, unknown>[] };
  expect(loads).toHaveLength(2);
  for (const load of loads) {
    expect(load).toMatchObject({ answered: 6, failed: {}, promptTokens: 40, newTokens: 8 });
    expect(load['cachedShare']).toBeGreaterThan(0.4);
    const { p50, p99 } = load['timeToFirstTokenMs'] as { p50: number; p99: number };
    expect(p50).toBeGreaterThan(0);
    expect(p99).toBeGreaterThanOrEqual(p50);
    expect((load['timePerOutputTokenMs'] as { p50: number }).p50).toBeGreaterThan(0);
  }
});
