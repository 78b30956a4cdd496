import { createLogger, type Logger } from '@medmesh/log';
import { type Metrics, startTelemetry } from '@medmesh/telemetry';
import {
  bind,
  createHealth,
  type PartialImplementation,
  type RunningServer,
  type ServiceBinding,
  type StartServerOptions,
  startServer,
} from '../src/index.ts';

/** The one message of the test service. Its codec is JSON: what is tested here never looks inside a message. */
export type Note = { text: string; requestId?: string };

const noteType = {
  encode: (note: Note) => ({ finish: () => Buffer.from(JSON.stringify(note)) }),
  decode: (bytes: Uint8Array) => JSON.parse(Buffer.from(bytes).toString()) as Note,
};

const method = <Req extends boolean, Res extends boolean>(name: string, requestStream: Req, responseStream: Res) => ({
  name,
  requestType: noteType,
  requestStream,
  responseType: noteType,
  responseStream,
  options: {},
});

/** A service with all four kinds of call, shaped as the generated ones are. */
export const EchoServiceDefinition = {
  name: 'EchoService',
  fullName: 'medmesh.test.v1.EchoService',
  methods: {
    say: method('Say', false, false),
    getNote: method('GetNote', false, false),
    generate: method('Generate', false, true),
    watchNotes: method('WatchNotes', false, true),
    collect: method('Collect', true, false),
    chat: method('Chat', true, true),
  },
} as const;

export type EchoImplementation = PartialImplementation<typeof EchoServiceDefinition>;

export type TestServer = RunningServer & { address: string; logLines: string[]; stop(): Promise<void> };

/** A real server on a free port of 127.0.0.1 that keeps what it logs. */
export async function startTestServer(
  services: EchoImplementation | ServiceBinding[],
  o: Partial<StartServerOptions> & { metrics?: Metrics } = {},
): Promise<TestServer> {
  startTelemetry({});
  const logLines: string[] = [];
  const log: Logger = createLogger({
    service: 'test',
    level: 'trace',
    destination: { write: (line) => void logLines.push(line) },
  });
  const bindings = Array.isArray(services) ? services : [bind(EchoServiceDefinition, services)];
  const server = await startServer({
    host: '127.0.0.1',
    port: 0,
    services: bindings,
    log,
    health: createHealth(),
    ...o,
  });
  return { ...server, address: `127.0.0.1:${server.port}`, logLines, stop: () => server.drain(100) };
}

/** All messages of a stream. */
export async function all<T>(stream: AsyncIterable<T>): Promise<T[]> {
  return Array.fromAsync(stream);
}

/** What a promise rejects with; resolving is a failure of the test. */
export async function rejection(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    (value) => {
      throw new Error(`expected a rejection, got ${JSON.stringify(value)}`);
    },
    (error: unknown) => error,
  );
}

/** The requests of a streaming call. */
export async function* notes(...texts: string[]): AsyncGenerator<Note> {
  for (const text of texts) yield { text };
}
