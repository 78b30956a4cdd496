import type { Logger } from '@medmesh/log';
import { type longrunning, model } from '@medmesh/proto';
import type { OperationRun, Operations } from '@medmesh/service';
import { traceId } from '@medmesh/telemetry';
import type { Run } from './deps.ts';
import { createProgressReporter } from './progress-reporter.ts';

type MessageType<T> = { encode(message: T): { finish(): Uint8Array }; decode(bytes: Uint8Array): T };

/** A long-running verb of the service: how its operation is queued, and what its messages are. */
export type Verb<Request, Response> = {
  kind: string;
  request: MessageType<Request>;
  requestType: string;
  response: MessageType<Response>;
  responseType: string;
  /** The model that the operation's metadata names. */
  modelOf: (request: Request) => string;
};

const typeUrl = (name: string) => `type.googleapis.com/medmesh.model.v1.${name}`;

const packMetadata = (metadata: Parameters<typeof model.ModelOperationMetadata.fromPartial>[0]) => ({
  typeUrl: typeUrl('ModelOperationMetadata'),
  bytes: model.ModelOperationMetadata.encode(model.ModelOperationMetadata.fromPartial(metadata)).finish(),
});

/** Queues a verb, unless `admit` throws. The same `request_id` again returns the operation of the first time, and nothing is asked. */
export function startVerb<Q extends { requestId: string }, R>(
  operations: Operations,
  verb: Verb<Q, R>,
  request: Q,
  admit?: () => Promise<void>,
): Promise<longrunning.Operation> {
  const name = verb.modelOf(request);
  return operations.start({
    kind: verb.kind,
    project: name.split('/')[1] ?? '',
    request: { typeUrl: typeUrl(verb.requestType), bytes: verb.request.encode({ ...request, requestId: '' }).finish() },
    metadata: packMetadata({ model: name, createTime: new Date(), traceId: traceId() ?? '' }),
    requestId: request.requestId,
    ...(admit === undefined ? {} : { admit }),
  });
}

const reportIntervalMs = 250;

/** Does a verb's operations until stopped. */
export function workOn<Q, R>(
  operations: Operations,
  log: Logger,
  verb: Verb<Q, R>,
  perform: (request: Q, run: Run) => Promise<R>,
  o: { concurrency: number; ackWaitMs: number },
): Promise<{ stop(): Promise<void> }> {
  const handler = async (operation: OperationRun) => {
    const request = verb.request.decode(operation.request);
    const base = { model: verb.modelOf(request), createTime: new Date(), traceId: traceId() ?? '' };
    const progress = createProgressReporter(
      async (metadata: { phase: string; doneBytes: number; totalBytes: number }) => {
        // Progress is for people: what is lost is repaired by the next report.
        await operation
          .update(packMetadata({ ...base, ...metadata }))
          .catch((error: unknown) => log.debug({ err: error }, 'progress was not recorded'));
      },
      reportIntervalMs,
    );
    try {
      const result = await perform(request, {
        operation: operation.name,
        report: (phase, doneBytes, totalBytes) => progress.report({ phase, doneBytes, totalBytes }),
        signal: operation.signal,
      });
      return { typeUrl: typeUrl(verb.responseType), bytes: verb.response.encode(result).finish() };
    } finally {
      await progress.close();
    }
  };
  return operations.run(verb.kind, handler, o);
}
