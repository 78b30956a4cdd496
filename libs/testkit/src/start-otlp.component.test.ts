import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type OtlpCollector, startOtlp } from './start-otlp.ts';

let collector: OtlpCollector;
beforeAll(async () => {
  collector = await startOtlp();
});
afterAll(async () => collector.stop());

const request = {
  resourceSpans: [
    {
      resource: { attributes: [{ key: 'service.name', value: { stringValue: 'trainer' } }] },
      scopeSpans: [
        {
          scope: { name: 'rpc' },
          spans: [
            {
              traceId: 'aa',
              spanId: '01',
              parentSpanId: '00',
              name: 'GetJob',
              kind: 2,
              startTimeUnixNano: '1700000000000000001',
              endTimeUnixNano: '1700000000000000005',
              attributes: [
                { key: 'rpc.method', value: { stringValue: 'GetJob' } },
                { key: 'attempt', value: { intValue: '3' } },
                { key: 'tags', value: { arrayValue: { values: [{ stringValue: 'x' }, { boolValue: true }] } } },
              ],
              status: { code: 2, message: 'not found' },
            },
          ],
        },
      ],
    },
  ],
};
const post = (body: string | Uint8Array<ArrayBuffer>, headers = {}) =>
  fetch(`${collector.endpoint}/v1/traces`, { method: 'POST', body, headers });

test('spans are flattened with their resource, and waiting for them ends when they arrive', async () => {
  const waiting = collector.waitForSpans((spans) => spans.length === 1);
  await post(JSON.stringify(request), { 'content-type': 'application/json' });
  const [span] = await waiting;
  expect(span).toMatchObject({
    traceId: 'aa',
    parentSpanId: '00',
    name: 'GetJob',
    kind: 'server',
    service: 'trainer',
    scope: 'rpc',
    attributes: { 'rpc.method': 'GetJob', attempt: 3, tags: ['x', true] },
    status: 'error',
    statusMessage: 'not found',
    startNs: 1700000000000000001n,
  });
});

test('compressed requests are read, unreadable ones refused, and a wait in vain says what came', async () => {
  collector.clear();
  expect((await post(gzipSync(JSON.stringify(request)), { 'content-encoding': 'gzip' })).status).toBe(200);
  expect((await post('not json')).status).toBe(415);
  await expect(collector.waitForSpans((spans) => spans.length > 1, 50)).rejects.toThrow('trainer server GetJob');
});
