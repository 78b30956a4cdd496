import { Failure, toFailure } from '@medmesh/errors';
import { rpc } from '@medmesh/proto';
import { type CallOptions, ClientError, type ClientMiddlewareCall, Status } from 'nice-grpc';
import type { CallGenerator } from './generators.ts';
import { fromStatus, statusDetailsTrailer } from './status.ts';
import { explainTlsRefusal } from './tls-refusals.ts';

/** Turns what a call throws into the Failure the server threw, as far as it crossed the wire. */
export async function* raiseFailures<Request, Response>(
  call: ClientMiddlewareCall<Request, Response>,
  options: CallOptions,
): CallGenerator<Response> {
  let details: Uint8Array | undefined;
  const onTrailer: CallOptions['onTrailer'] = (trailer) => {
    details = trailer.get(statusDetailsTrailer);
    options.onTrailer?.(trailer);
  };
  try {
    return yield* call.next(call.request, { ...options, onTrailer });
  } catch (e) {
    if (e instanceof ClientError) {
      const refusal = e.code === Status.UNAVAILABLE && details === undefined ? explainTlsRefusal(e.details) : undefined;
      if (refusal !== undefined) throw new Failure('unavailable', refusal, { reason: 'TLS_REFUSED', cause: e });
      throw fromStatus(decodeStatus(details, e), e);
    }
    throw abortReason(options.signal) ?? toFailure(e);
  }
}

function decodeStatus(details: Uint8Array | undefined, e: ClientError): rpc.Status {
  // The plain status rules: details of another code would be a leftover of something else.
  const plain: rpc.Status = { code: e.code, message: e.details, details: [] };
  if (details === undefined) return plain;
  try {
    const rich = rpc.Status.decode(details);
    return rich.code === e.code ? rich : plain;
  } catch {
    return plain;
  }
}

/** gRPC's own abort error forgets why; the signal remembers. */
function abortReason(signal: AbortSignal | undefined): Failure | undefined {
  if (signal?.aborted !== true) return undefined;
  const failure = toFailure(signal.reason);
  // A caller may abort with anything at all; that is still a cancellation and no defect.
  return failure.reason === 'UNFORESEEN'
    ? new Failure('cancelled', 'the call was cancelled', { cause: signal.reason })
    : failure;
}
