import { execFileSync } from 'node:child_process';
import { connect } from 'node:net';
import { type ContextManager, context, ROOT_CONTEXT, trace } from '@opentelemetry/api';
import { describe, expect, test } from 'vitest';
import { createLogger, describeError, type Logger } from '../src/index.ts';

const canary = 'Mrs. Okonkwo has chest pain';

/** A logger and the lines it has written, as text and parsed. */
function captured(): { log: Logger; text: () => string; last: () => Record<string, unknown> } {
  const lines: string[] = [];
  const log = createLogger({
    service: 'test',
    level: 'trace',
    destination: { write: (line) => void lines.push(line) },
  });
  return { log, text: () => lines.join(''), last: () => JSON.parse(lines.at(-1) ?? 'null') as Record<string, unknown> };
}

function thrownBy(fn: () => unknown): Error {
  try {
    fn();
  } catch (e) {
    if (e instanceof Error) return e;
  }
  throw new Error('nothing was thrown');
}

const failure = (message: string, cause?: unknown) =>
  Object.assign(new Error(message, { cause }), {
    name: 'Failure',
    code: 'not_found',
    reason: 'RESOURCE_NOT_FOUND',
    fields: [{ field: 'name', description: 'x' }],
    metadata: { resource: 'models/m' },
  });

describe('a line', () => {
  test('is JSON with level, ISO time, service and message', () => {
    const { log, last } = captured();
    log.info({ job: 'j1' }, 'started');
    expect(last()).toMatchObject({ level: 'info', service: 'test', job: 'j1', msg: 'started' });
    expect(new Date(String(last()['time'])).toISOString()).toBe(last()['time']);
  });

  test('below the level is not written', () => {
    const lines: string[] = [];
    const log = createLogger({
      service: 'test',
      level: 'warn',
      destination: { write: (line) => void lines.push(line) },
    });
    log.info('quiet');
    log.warn('loud');
    expect(lines).toHaveLength(1);
  });

  test('carries the ids of the active span, and no ids outside a span', () => {
    const { log, last } = captured();
    log.info('outside');
    expect(last()).not.toHaveProperty('trace_id');
    const ids = { traceId: '0af7651916cd43dd8448eb211c80319c', spanId: 'b7ad6b7169203331', traceFlags: 1 };
    const span = trace.wrapSpanContext(ids);
    // Telemetry is not started here, so a manager that always answers with this span stands in for it.
    const active = trace.setSpan(ROOT_CONTEXT, span);
    context.setGlobalContextManager({ active: () => active, disable: () => undefined } as unknown as ContextManager);
    log.info('inside');
    context.disable();
    expect(last()).toMatchObject({ trace_id: ids.traceId, span_id: ids.spanId });
  });

  test('goes to stdout of a real process', () => {
    const index = new URL('../src/index.ts', import.meta.url).href;
    const script = `import { createLogger } from ${JSON.stringify(index)}; createLogger({ service: 's' }).info('hello'); process.exit(0);`;
    const out = execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' });
    expect(JSON.parse(out)).toMatchObject({ service: 's', msg: 'hello' });
  });
});

describe('patient text', () => {
  test('in a known field is redacted at any of the first four levels', () => {
    const { log, text } = captured();
    log.info({ prompt: canary, a: { question: canary, b: { rows: [canary], c: { text: canary } } } }, 'request');
    expect(text()).not.toContain('Okonkwo');
    expect(text()).toContain('[redacted]');
  });

  test('is redacted in arrays, in what a child logger adds, in errors and what they carry, and in what an object is written as', () => {
    const { log, text, last } = captured();
    const written = { toJSON: () => ({ answer: canary }) };
    const hostile = {
      get name() {
        throw new Error(canary);
      },
    };
    const carrying = Object.assign(new Error('x'), { text: canary });
    log.info({ list: [{ text: canary }, { count: 1, rows: [canary] }] }, 'list');
    expect(last()).toMatchObject({ list: [{ text: '[redacted]' }, { count: 1, rows: '[redacted]' }] });
    const child = log.child({ prompt: canary, a: { slots: { question: canary } } });
    child.child({ text: canary }).info({ job: 'j' }, 'grandchild');
    expect(last()).toMatchObject({ prompt: '[redacted]', a: { slots: '[redacted]' }, text: '[redacted]', job: 'j' });
    log.error({ err: Object.assign(failure('failed'), { metadata: { a: { text: canary } } }) }, 'failed');
    expect(last()['err']).toMatchObject({ metadata: { a: { text: '[redacted]' } } });
    log.error({ prompt: new Error(canary), inner: { carrying } }, 'carried');
    log.info({ written, at: new Date(0) }, 'written');
    expect(last()).toMatchObject({ written: { answer: '[redacted]' }, at: '1970-01-01T00:00:00.000Z' });
    log.info({ hostile }, 'hostile');
    expect(last()).toMatchObject({ msg: 'hostile' });
    expect(text()).not.toContain('Okonkwo');
  });

  test('is left in the object that was logged', () => {
    const { log } = captured();
    const fields = { a: { text: canary }, b: [1] };
    log.info(fields, 'line');
    expect(fields).toEqual({ a: { text: canary }, b: [1] });
  });

  test('redaction leaves counts alone', () => {
    const { log, last } = captured();
    log.info({ rows: 1200, tokens: 7 }, 'read');
    expect(last()).toMatchObject({ rows: 1200, tokens: 7 });
  });

  test.each([
    ['a JSON parser', () => JSON.parse(`${canary}`)],
    [
      'a library',
      () => {
        throw new Error(`Could not convert string "${canary}" to INT`);
      },
    ],
    [
      'a JSON parser under a Failure',
      () => {
        throw failure(
          'row 7 is not JSON',
          thrownBy(() => JSON.parse(canary)),
        );
      },
    ],
    [
      'a thrown string under a Failure',
      () => {
        throw failure('row 7 is not JSON', canary);
      },
    ],
    [
      'a message that imitates a call site',
      () => {
        throw new Error(`x\n    at ${canary}:1:2`);
      },
    ],
  ])('in an error from %s is withheld, however the error is logged', (_, fn) => {
    const { log, text } = captured();
    const error = thrownBy(fn);
    log.error(error);
    log.error({ err: error });
    log.error({ err: error }, 'failed');
    log.error(error, 'failed');
    log.child({ job: 'j' }).error({ error }, 'failed');
    expect(text()).not.toContain('Okonkwo');
    expect(text().split('\n').filter(Boolean)).toHaveLength(5);
  });
});

describe('an error', () => {
  test('keeps code, reason, fields, metadata, message and call sites of a Failure', () => {
    const { log, last } = captured();
    log.error({ err: failure('models/m does not exist') }, 'failed');
    expect(last()['err']).toMatchObject({
      type: 'Failure',
      code: 'not_found',
      reason: 'RESOURCE_NOT_FOUND',
      fields: ['name'],
      metadata: { resource: 'models/m' },
      message: 'models/m does not exist',
    });
    expect((last()['err'] as { stack: string[] }).stack[0]).toContain('logger.test.ts');
  });

  test('names the types and places of its causes', () => {
    const root = thrownBy(() => JSON.parse('{'));
    const { causes } = describeError(failure('x', new Error('middle', { cause: root })));
    expect(causes?.map((c) => c.type)).toEqual(['Error', 'SyntaxError']);
    expect(causes?.[1]?.stack?.length).toBeGreaterThan(0);
  });

  test('of the operating system keeps its message, which names an address and no content', async () => {
    const error = await new Promise<Error>((resolve) => connect(1, '127.0.0.1').on('error', resolve));
    expect(describeError(error)).toMatchObject({ code: 'ECONNREFUSED', message: 'connect ECONNREFUSED 127.0.0.1:1' });
  });

  test('whose causes form a ring is described once around, not for ever', () => {
    const a = new Error('a');
    a.cause = new Error('b', { cause: a });
    expect(describeError(a).causes).toHaveLength(5);
  });
});
