import { Failure } from '@medmesh/errors';
import type { longrunning, protobuf } from '@medmesh/proto';
import { type Client, fromStatus } from '@medmesh/rpc';

export type OperationsClient = Client<longrunning.OperationsDefinition>;

type Decoder<T> = { decode(bytes: Uint8Array): T };

/** Called whenever the operation's metadata changes. */
export type OperationProgress<M> = (metadata: M) => void;

export type WaitOptions<M> = {
  onProgress?: OperationProgress<M>;
  /** Stops waiting and asks the server to cancel the operation. */
  signal?: AbortSignal;
  /** Between two looks. Default 250 ms. */
  pollMs?: number;
};

const unpack = <T>(any: protobuf.Any | undefined, type: Decoder<T>): T | undefined =>
  any === undefined ? undefined : type.decode(any.value);

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits for a long-running operation and returns its response. The operation's error becomes the Failure that the server threw. */
export async function waitForOperation<T, M>(
  operations: OperationsClient,
  started: longrunning.Operation,
  types: { response: Decoder<T>; metadata: Decoder<M> },
  options: WaitOptions<M> = {},
): Promise<T> {
  let operation = started;
  let lastMetadata = '';
  try {
    for (;;) {
      const metadata = unpack(operation.metadata, types.metadata);
      const seen = operation.metadata === undefined ? '' : Buffer.from(operation.metadata.value).toString('base64');
      if (metadata !== undefined && seen !== lastMetadata) options.onProgress?.(metadata);
      lastMetadata = seen;
      if (operation.done) break;
      options.signal?.throwIfAborted();
      await sleep(options.pollMs ?? 250);
      operation = await operations.getOperation({ name: operation.name });
    }
  } catch (error) {
    if (options.signal?.aborted) await operations.cancelOperation({ name: operation.name }).catch(() => undefined);
    throw error;
  }
  if (operation.result?.$case === 'error') throw fromStatus(operation.result.value);
  if (operation.result?.$case !== 'response') {
    throw new Failure('internal', `${operation.name} is done but has no response`, { reason: 'OPERATION_INVALID' });
  }
  return types.response.decode(operation.result.value.value);
}
