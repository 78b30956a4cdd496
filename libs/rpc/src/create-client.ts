import type { Metrics } from '@medmesh/telemetry';
import {
  type Channel,
  createClientFactory,
  type Metadata,
  type Client as NiceClient,
  type TsProtoServiceDefinition,
} from 'nice-grpc';
import { openChannel } from './channel.ts';
import { type DeadlineOptions, limitTime } from './client-deadline.ts';
import { raiseFailures } from './client-failures.ts';
import { observeAttempts } from './client-observation.ts';
import { type RetryOptions, repeatUnavailable } from './client-retry.ts';

/** Methods as functions: a promise for a single answer, an async iterable for a stream. They throw Failure. */
export type Client<D extends TsProtoServiceDefinition> = NiceClient<D, DeadlineOptions & RetryOptions>;

export type ClientOptions = {
  /** How long a unary call may take unless the call says otherwise. */
  readonly unaryDeadlineMs?: number | undefined;
  /** Sent with every call that brings no metadata of its own. */
  readonly metadata?: Metadata | undefined;
  readonly metrics?: Metrics | undefined;
};

const defaultUnaryDeadlineMs = 30_000;

/**
 * A client of a service. `target` is a channel of `openChannel`, or an address for which a channel is opened and kept
 * as long as the process lives. Each call takes `{ signal, metadata, deadlineMs, retry, onHeader, onTrailer }`.
 */
export function createClient<D extends TsProtoServiceDefinition>(
  definition: D,
  target: Channel | string,
  o: ClientOptions = {},
): Client<D> {
  const channel = typeof target === 'string' ? openChannel(target) : target;
  // Innermost first, as nice-grpc wants them: each attempt has a span, retries judge Failures, the deadline covers all.
  return createClientFactory()
    .use(observeAttempts({ metrics: o.metrics, target: channel.getTarget() }))
    .use(raiseFailures)
    .use(repeatUnavailable)
    .use(limitTime(o.unaryDeadlineMs ?? defaultUnaryDeadlineMs))
    .create(definition, channel, o.metadata === undefined ? {} : { '*': { metadata: o.metadata } }) as Client<D>;
}
