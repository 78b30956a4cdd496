import { context, ROOT_CONTEXT, trace } from '@opentelemetry/api';
import { beforeAll, describe, expect, test } from 'vitest';
import {
  activeTraceparent,
  contextFromTraceparent,
  extractHeaders,
  injectHeaders,
  startTelemetry,
  traceId,
  withSpan,
} from '../src/index.ts';

beforeAll(() => startTelemetry({}));

describe('headers', () => {
  test('carry the active span to the other side', async () => {
    const headers = new Map<string, string>();
    const here = await withSpan('send', {}, () => {
      injectHeaders(headers);
      return activeTraceparent();
    });
    expect(headers.get('traceparent')).toBe(here);
    await withSpan('receive', { parent: extractHeaders(headers) }, () => {
      expect(traceId()).toBe(here?.split('-')[1]);
    });
  });

  test('outside a span carry nothing', () => {
    const headers = new Map<string, string>();
    injectHeaders(headers);
    expect(headers.size).toBe(0);
    expect(activeTraceparent()).toBeUndefined();
  });

  test.each([
    undefined,
    '',
    'garbage',
    '00-00000000000000000000000000000000-b7ad6b7169203331-01',
    '00-0af7651916cd43dd8448eb211c80319c-b7ad-01',
  ])('a traceparent of %j starts a trace of its own instead of failing', (traceparent) => {
    expect(contextFromTraceparent(traceparent)).toBe(ROOT_CONTEXT);
  });

  test('what is inside another trace is not inherited from the active span', async () => {
    await withSpan('here', {}, () => {
      expect(trace.getSpanContext(extractHeaders(new Map()))).toBeUndefined();
      expect(trace.getSpanContext(context.active())).toBeDefined();
    });
  });
});

describe('withSpan', () => {
  test('returns what the function returns and rethrows what it throws', async () => {
    expect(await withSpan('x', {}, async () => 7)).toBe(7);
    const error = new Error('x');
    await expect(withSpan('x', {}, () => Promise.reject(error))).rejects.toBe(error);
  });
});
