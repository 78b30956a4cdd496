import {
  AckPolicy,
  type ConsumerConfig,
  type ConsumerInfo,
  DeliverPolicy,
  JetStreamApiCodes,
  JetStreamApiError,
  type JetStreamClient,
  JetStreamError,
  type JetStreamManager,
  type JsMsg,
} from '@nats-io/jetstream';
import { errors, type NatsConnection, nanos, nuid } from '@nats-io/transport-node';
import { isBrokerAway, pause } from './broker.ts';

export type ReadStreamOptions = {
  nc: NatsConnection;
  js: JetStreamClient;
  manager: JetStreamManager;
  stream: string;
  subjects: string[];
  /** Where to begin; 0: with the first there is. */
  afterSequence: number;
  /** Go on with what comes, or end after what was there at the start. */
  follow: boolean;
  signal: AbortSignal;
};

const batchSize = 256;
/** The server holds one request for messages at most this long. */
const requestMs = 5_000;
/** An answer that is this late will not come. */
const graceMs = 2_000;
const pauseMs = 200;
const inactiveMs = 60_000;

/**
 * The messages of a stream in order, each once. The position is kept here, not on the server: when the broker restarts, or loses the reader, reading goes
 * on after the last message that was yielded. Ends quietly when the signal aborts.
 */
export async function* readStream(o: ReadStreamOptions): AsyncGenerator<JsMsg> {
  let cursor = o.afterSequence;
  while (!o.signal.aborted) {
    let consumer: ConsumerInfo | undefined;
    try {
      consumer = await o.manager.consumers.add(o.stream, consumerConfig(o.subjects, cursor));
      if (consumer.num_pending === 0 && !o.follow) return;
      for await (const message of deliveries(o, consumer)) {
        cursor = message.seq;
        yield message;
        if (!o.follow && message.info.pending === 0) return;
      }
    } catch (error) {
      if (o.signal.aborted) return;
      if (!isPassing(error)) throw error;
    } finally {
      if (consumer !== undefined && !o.nc.isClosed()) {
        // Not awaited: the server forgets an idle reader by itself.
        o.manager.consumers.delete(o.stream, consumer.name).catch(() => undefined);
      }
    }
    await pause(pauseMs, o.signal).catch(() => undefined);
  }
}

function consumerConfig(subjects: string[], cursor: number): Partial<ConsumerConfig> {
  return {
    name: `read_${nuid.next()}`,
    ack_policy: AckPolicy.None,
    filter_subjects: subjects,
    deliver_policy: DeliverPolicy.StartSequence,
    opt_start_seq: cursor + 1,
    mem_storage: true,
    num_replicas: 1,
    inactive_threshold: nanos(inactiveMs),
  };
}

/** What one consumer delivers without a gap. Ends at a gap or when it is lost: the caller makes a new one. */
async function* deliveries(o: ReadStreamOptions, info: ConsumerInfo): AsyncGenerator<JsMsg> {
  const consumer = o.js.consumers.getConsumerFromInfo(info);
  let delivered = 0;
  while (!o.signal.aborted) {
    const batch = await consumer.fetch({ max_messages: batchSize, expires: requestMs });
    const stop = (): void => batch.stop();
    const late = setTimeout(stop, requestMs + graceMs);
    o.signal.addEventListener('abort', stop, { once: true });
    try {
      for await (const message of batch) {
        delivered += 1;
        if (message.info.deliverySequence !== delivered) return;
        if (o.signal.aborted) return;
        yield message;
      }
    } finally {
      clearTimeout(late);
      o.signal.removeEventListener('abort', stop);
      batch.stop();
    }
  }
}

/** Whether a new consumer may succeed where this one failed. */
function isPassing(error: unknown): boolean {
  if (error instanceof errors.ClosedConnectionError || error instanceof errors.DrainingConnectionError) return false;
  if (error instanceof JetStreamApiError)
    return error.code === JetStreamApiCodes.ConsumerNotFound || isBrokerAway(error);
  // Statuses in place of messages: consumer deleted, heartbeats missed, no responders.
  return error instanceof JetStreamError || isBrokerAway(error);
}
