import { type Channel, Metadata as GrpcMetadata } from '@grpc/grpc-js';
import { type ErrorCode, errorTable, Failure } from '@medmesh/errors';
import { longrunning } from '@medmesh/proto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { bind, createClient, fromStatus, openChannel, toStatus } from '../src/index.ts';
import { all, EchoServiceDefinition, rejection, startTestServer, type TestServer } from './echo-service.ts';

const rich = new Failure('invalid_argument', 'spec has two faults', {
  reason: 'FIELD_INVALID',
  fields: [
    { field: 'spec.lora_rank', description: 'is 0; use a value from 1 to 256' },
    { field: 'spec.epochs', description: 'is -1; use a value of at least 1' },
  ],
  metadata: { resource: 'projects/p/jobs/j' },
  retryAfterMs: 1500,
});

const thrown: Record<string, () => never> = {
  rich: () => {
    throw rich;
  },
  bug: () => {
    throw new TypeError('Mrs. Okonkwo has chest pain');
  },
};
for (const code of Object.keys(errorTable) as ErrorCode[]) {
  thrown[code] = () => {
    throw new Failure(code, `a ${code} failure`);
  };
}

let server: TestServer;
beforeAll(async () => {
  server = await startTestServer({
    say: async ({ text }) => thrown[text]?.() ?? { text },
    generate: async function* ({ text }) {
      yield { text: 'first' };
      thrown[text]?.();
    },
  });
});
afterAll(() => server.stop());
const client = () => createClient(EchoServiceDefinition, server.address);

describe('a Failure across a real server', () => {
  test('arrives with code, message, reason, fields, metadata and wait', async () => {
    const failure = await rejection(client().say({ text: 'rich' }, { retry: false }));
    expect(failure).toBeInstanceOf(Failure);
    expect(failure).toMatchObject({
      code: 'invalid_argument',
      message: 'spec has two faults',
      reason: 'FIELD_INVALID',
      fields: rich.fields,
      metadata: rich.metadata,
      retryAfterMs: 1500,
    });
  });

  test('ends a stream after the messages sent before it', async () => {
    const received: string[] = [];
    const read = async () => {
      for await (const { text } of client().generate({ text: 'rich' })) received.push(text);
    };
    expect(await rejection(read())).toMatchObject({ code: 'invalid_argument', reason: 'FIELD_INVALID' });
    expect(received).toEqual(['first']);
  });

  test.each(Object.keys(errorTable))('keeps the code %s', async (code) => {
    expect(await rejection(client().say({ text: code }))).toMatchObject({
      code,
      reason: code.toUpperCase(),
      message: `a ${code} failure`,
    });
  });
});

describe('an unforeseen error', () => {
  test('arrives as internal with an id and nothing of its message; the log has the id and the place', async () => {
    const failure = (await rejection(client().say({ text: 'bug' }))) as Failure;
    expect(failure).toMatchObject({ code: 'internal', reason: 'UNFORESEEN' });
    const id = failure.metadata?.['error_id'] ?? 'no id';
    expect(failure.message).toContain(id);
    expect(JSON.stringify(failure)).not.toContain('Okonkwo');
    const line = server.logLines.find((l) => l.includes(id));
    expect(JSON.parse(line ?? '{}')).toMatchObject({
      level: 'error',
      code: 'INTERNAL',
      err: { causes: [{ type: 'TypeError' }] },
    });
  });
});

describe('a call the server does not take', () => {
  test('of a method without handler is unimplemented, reason METHOD_NOT_IMPLEMENTED', async () => {
    const expected = { code: 'unimplemented', reason: 'METHOD_NOT_IMPLEMENTED' };
    expect(await rejection(client().getNote({ text: '' }))).toMatchObject({
      ...expected,
      metadata: { method: 'medmesh.test.v1.EchoService/GetNote' },
    });
    expect(await rejection(all(client().watchNotes({ text: '' })))).toMatchObject(expected);
    expect(await rejection(client().collect((async function* () {})()))).toMatchObject(expected);
    expect(await rejection(all(client().chat((async function* () {})())))).toMatchObject(expected);
  });

  test('of a service it does not have is unimplemented', async () => {
    const operations = createClient(longrunning.OperationsDefinition, server.address);
    expect(await rejection(operations.getOperation({ name: 'operations/x' }))).toMatchObject({ code: 'unimplemented' });
  });

  test('whose request does not decode is invalid_argument, reason REQUEST_MALFORMED', async () => {
    const channel = openChannel(server.address);
    expect(await rawUnary(channel, '/medmesh.test.v1.EchoService/Say', Buffer.from('{"text": "Mrs. Okon'))).toEqual({
      code: errorTable.invalid_argument.grpc,
      details: "the request is not a message of medmesh.test.v1.EchoService/Say; build it from this API's contract",
    });
    channel.close();
  });
});

describe('google.rpc.Status', () => {
  test('is cut so that an error with a thousand faults can still be delivered', async () => {
    const fields = Array.from({ length: 1000 }, (_, i) => ({ field: `rows[${i}]`, description: 'x'.repeat(1000) }));
    const failing = await startTestServer([
      bind(EchoServiceDefinition, {
        say: () => Promise.reject(new Failure('invalid_argument', 'm'.repeat(100_000), { fields })),
      }),
    ]);
    const failure = (await rejection(
      createClient(EchoServiceDefinition, failing.address).say({ text: '' }),
    )) as Failure;
    expect(failure.code).toBe('invalid_argument');
    expect(failure.fields?.length).toBe(20);
    await failing.stop();
  });

  test('goes there and back', () => {
    const { code, reason, message, fields, metadata, retryAfterMs } = fromStatus(toStatus(rich));
    expect({ code, reason, message, fields, metadata, retryAfterMs }).toEqual({
      code: rich.code,
      reason: rich.reason,
      message: rich.message,
      fields: rich.fields,
      metadata: rich.metadata,
      retryAfterMs: 1500,
    });
  });

  test('with details that do not decode keeps code and message', () => {
    const garbage = { typeUrl: 'type.googleapis.com/google.rpc.ErrorInfo', value: Buffer.from([0xff, 0xff, 0xff]) };
    expect(fromStatus({ code: 5, message: 'gone', details: [garbage] })).toMatchObject({
      code: 'not_found',
      message: 'gone',
    });
  });
});

/** A unary call with bytes of the caller's making. */
function rawUnary(channel: Channel, path: string, bytes: Buffer): Promise<{ code: number; details: string }> {
  return new Promise((resolve) => {
    const call = channel.createCall(path, Number.POSITIVE_INFINITY, null, null, 0);
    call.start(new GrpcMetadata(), {
      onReceiveMetadata: () => undefined,
      onReceiveMessage: () => undefined,
      onReceiveStatus: ({ code, details }) => resolve({ code, details }),
    });
    call.sendMessageWithContext({}, bytes);
    call.startRead();
    call.halfClose();
  });
}
