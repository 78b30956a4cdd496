import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import {
  codeOfGrpcStatus,
  type ErrorCode,
  errorTable,
  Failure,
  invalidField,
  notFound,
  toFailure,
  unimplemented,
} from '../src/index.ts';

const engineError = (code: string, message: string) => Object.assign(new Error(message), { name: 'EngineError', code });

describe('the error table', () => {
  test('every code has its own gRPC status and finds its way back from it', () => {
    const codes = Object.keys(errorTable) as ErrorCode[];
    expect(new Set(codes.map((code) => errorTable[code].grpc)).size).toBe(codes.length);
    for (const code of codes) expect(codeOfGrpcStatus(errorTable[code].grpc)).toBe(code);
  });

  test('statuses outside the table read as the nearest code', () => {
    expect(codeOfGrpcStatus(11)).toBe('invalid_argument');
    expect(codeOfGrpcStatus(2)).toBe('internal');
    expect(codeOfGrpcStatus(99)).toBe('internal');
  });

  test('only errors that can pass by themselves are retryable', () => {
    const retryable = (Object.keys(errorTable) as ErrorCode[]).filter((code) => new Failure(code, 'x').retryable);
    expect(retryable.sort()).toEqual(['aborted', 'deadline_exceeded', 'resource_exhausted', 'unavailable']);
  });
});

describe('Failure', () => {
  test('has a reason even when none was given', () => {
    expect(new Failure('data_loss', 'x').reason).toBe('DATA_LOSS');
  });

  test('an invalid field names the field in the message and in the violations', () => {
    const failure = invalidField('spec.lora_rank', 'is 0; use a value from 1 to 256');
    expect(failure).toMatchObject({ code: 'invalid_argument', reason: 'FIELD_INVALID' });
    expect(failure.message).toBe('spec.lora_rank: is 0; use a value from 1 to 256');
    expect(failure.fields).toEqual([{ field: 'spec.lora_rank', description: 'is 0; use a value from 1 to 256' }]);
  });

  test('a missing resource is named', () => {
    expect(notFound('projects/p/models/m')).toMatchObject({
      code: 'not_found',
      metadata: { resource: 'projects/p/models/m' },
    });
    expect(unimplemented('beam search')).toMatchObject({
      code: 'unimplemented',
      message: 'beam search is not implemented',
    });
  });
});

describe('toFailure', () => {
  test('a Failure is returned as it is', () => {
    const failure = notFound('x');
    expect(toFailure(failure)).toBe(failure);
  });

  test("an abort reads as cancelled and a timeout as deadline_exceeded, from the platform's own errors", async () => {
    const aborted = await sleep(1000, undefined, { signal: AbortSignal.abort() }).catch((e: unknown) => e);
    expect(toFailure(aborted)).toMatchObject({ code: 'cancelled', cause: aborted });
    const timedOut = await sleep(1000, undefined, { signal: AbortSignal.timeout(1) }).catch((e: unknown) => e);
    expect(toFailure(timedOut).code).toBe('deadline_exceeded');
    const signal = AbortSignal.timeout(1);
    await sleep(10);
    expect(toFailure(signal.reason).code).toBe('deadline_exceeded');
  });

  test('an abort whose reason is a Failure keeps that Failure', async () => {
    const reason = new Failure('unavailable', 'shutting down');
    const aborted = await sleep(1000, undefined, { signal: AbortSignal.abort(reason) }).catch((e: unknown) => e);
    expect(toFailure(aborted)).toBe(reason);
  });

  test.each([
    ['invalid', 'invalid_argument'],
    ['unsupported', 'unimplemented'],
    ['io', 'unavailable'],
    ['corrupt', 'data_loss'],
    ['oom', 'resource_exhausted'],
    ['cancelled', 'cancelled'],
    ['device_lost', 'unavailable'],
  ])('an engine error of code %s reads as %s and keeps its message', (code, expected) => {
    const failure = toFailure(engineError(code, 'rank is 0; use 1 to 256'));
    expect(failure).toMatchObject({
      code: expected,
      message: 'rank is 0; use 1 to 256',
      reason: `ENGINE_${code.toUpperCase()}`,
    });
  });

  test('an error whose code is in the table keeps code and message', () => {
    expect(toFailure(Object.assign(new Error('taken'), { code: 'already_exists' }))).toMatchObject({
      code: 'already_exists',
      message: 'taken',
    });
  });

  test('a refused connection is unavailable and a full disk is resource_exhausted, without the path', () => {
    expect(toFailure(Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' })).code).toBe(
      'unavailable',
    );
    const full = toFailure(Object.assign(new Error("ENOSPC: write '/data/mrs-x'"), { code: 'ENOSPC' }));
    expect(full.code).toBe('resource_exhausted');
    expect(full.message).not.toContain('mrs-x');
  });

  test.each([
    new Error('row 7: patient says hello'),
    engineError('internal', 'patient says hello'),
    'patient says hello',
    undefined,
    null,
    7,
  ])('an unforeseen error is internal, keeps its cause and shows only an id (%#)', (thrown) => {
    const failure = toFailure(thrown);
    expect(failure.code).toBe('internal');
    expect(failure.message).not.toContain('patient');
    expect(failure.message).toContain(failure.metadata?.['error_id']);
    expect(failure.cause).toBe(thrown);
  });
});
