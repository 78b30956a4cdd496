import { Failure, toFailure } from '@medmesh/errors';
import type { Logger } from '@medmesh/log';
import { attribute, extractHeaders, withSpan } from '@medmesh/telemetry';
import {
  AckPolicy,
  type Consumer,
  DeliverPolicy,
  JetStreamApiCodes,
  JetStreamApiError,
  type JsMsg,
  jetstream,
  jetstreamManager,
} from '@nats-io/jetstream';
import { errors, type NatsConnection, nanos } from '@nats-io/transport-node';
import { answerTimeoutMs, pause, untilBrokerAnswers } from './broker.ts';
import { buryMessage, createHandbacks } from './dead-letter.ts';
import { headersOf } from './read-events.ts';
import { Requeue } from './requeue.ts';
import { streamOf } from './streams.ts';

/** One piece of work. It may come twice: handlers are written so that the second time changes nothing. */
export type WorkMessage = {
  readonly subject: string;
  readonly data: Uint8Array;
  readonly headers: ReadonlyMap<string, string>;
  /** The message's place in the stream; the same at every delivery. */
  readonly sequence: number;
  /** 1 the first time. */
  readonly deliveryCount: number;
  /** When it was stored. */
  readonly time: Date;
};

export type ConsumeWorkOptions = {
  nc: NatsConnection;
  subject: string;
  /** All processes that name the same durable share the work. */
  durable: string;
  /** How many messages this process works on at once. Nothing is fetched ahead of a free place. */
  concurrency: number;
  /** A worker that is silent for this long is taken for dead. Heartbeats go out three times as often, however long the handler takes. */
  ackWaitMs: number;
  /** Failed attempts after which a message is dead. Hand-backs do not count; deaths of the process do. */
  maxDeliver: number;
  /** Pause before the next attempt, or the pauses before the second, third, … attempt; the last one stays. */
  backoffMs: number | readonly number[];
  /**
   * Returns when the work is done. A Failure that is not retryable makes the message dead at once, another one after `maxDeliver` attempts;
   * `Requeue` hands it back. The signal aborts when this consumer stops: checkpoint, and throw whatever comes.
   */
  handler: (message: WorkMessage, signal: AbortSignal) => Promise<void>;
  /** Told of a message that is dead, before it leaves the queue. If it throws, it is told again later. */
  onDead?: (message: WorkMessage, failure: Failure) => Promise<void>;
  log: Logger;
  signal?: AbortSignal | undefined;
};

export interface WorkConsumer {
  /** Takes no new work, aborts the handlers' signal, waits for them and hands back what they did not finish. */
  stop(): Promise<void>;
}

/** What becomes of a message. */
type Verdict = { kind: 'ack' } | { kind: 'nak'; delayMs: number } | { kind: 'term' };

/** A request for work is held by the broker this long. Short, because stopping waits for it: what it brought afterwards would be lost for `ackWaitMs`. */
const requestMs = 1_000;
const graceMs = 3_000;
const awayPauseMs = 250;
const settlePatienceMs = 60_000;
/** How long a place waits for the broker to hear how its work ended, before it goes on to the next. */
const settleInPlaceMs = 1_000;
const stoppingPatienceMs = 5_000;
const deadRetryMs = 5_000;
const settledKept = 1_000;

/** Works on the messages of a subject until stopped. Waits for a broker that is away, and goes on when it is back. */
export async function consumeWork(o: ConsumeWorkOptions): Promise<WorkConsumer> {
  const { nc, durable, log } = o;
  const stream = streamOf(o.subject);
  const js = jetstream(nc, { timeout: answerTimeoutMs });
  const manager = await untilBrokerAnswers(
    'reach JetStream',
    () => jetstreamManager(nc, { timeout: answerTimeoutMs }),
    {
      signal: o.signal,
    },
  );
  const handbacks = createHandbacks(js, manager, durable);
  const stopping = new AbortController();
  const stopReason = new Failure('unavailable', 'this worker is stopping; the work goes back to the queue', {
    reason: 'WORKER_STOPPING',
  });

  const openConsumer = async (): Promise<Consumer> => {
    const config = {
      durable_name: durable,
      filter_subject: o.subject,
      deliver_policy: DeliverPolicy.All,
      ack_policy: AckPolicy.Explicit,
      ack_wait: nanos(o.ackWaitMs),
      // Counted here, not by the broker: what it stops delivering would lie in the queue unseen.
      max_deliver: -1,
      max_ack_pending: 10_000,
    };
    const info = await manager.consumers.add(stream, config);
    return js.consumers.getConsumerFromInfo(info);
  };
  let consumer = await untilBrokerAnswers(`open the consumer ${durable}`, openConsumer, { signal: o.signal });

  /** What is being worked on here, with its newest delivery: a broker that restarted may deliver it again, and then only the new one can be settled. */
  const running = new Map<number, { message: JsMsg }>();
  /** What was done but could not be settled, lest it be done twice. */
  const unsettled = new Map<number, Verdict>();
  const settling = new Set<Promise<void>>();

  async function next(): Promise<JsMsg | null> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<null>((resolve) => {
      timer = setTimeout(resolve, requestMs + graceMs, null);
    });
    try {
      return await Promise.race([consumer.next({ expires: requestMs }), late]);
    } finally {
      clearTimeout(timer);
    }
  }

  async function settle(run: { message: JsMsg }, verdict: Verdict): Promise<void> {
    const sequence = run.message.seq;
    try {
      // Read anew at each attempt: a newer delivery may have come meanwhile.
      const send = () => nc.request(replyOf(run.message), payloadOf(verdict), { timeout: answerTimeoutMs });
      const patienceMs = stopping.signal.aborted ? stoppingPatienceMs : settlePatienceMs;
      await untilBrokerAnswers('settle a message', send, { patienceMs });
      unsettled.delete(sequence);
    } catch (error) {
      log.warn(
        { durable, sequence, verdict: verdict.kind, err: error },
        'the broker was not told how work ended; it will come again',
      );
      unsettled.set(sequence, verdict);
      if (unsettled.size > settledKept) unsettled.delete(unsettled.keys().next().value!);
    }
  }

  async function bury(message: JsMsg, failure: Failure): Promise<Verdict> {
    const fields = {
      durable,
      subject: message.subject,
      sequence: message.seq,
      deliveries: message.info.deliveryCount,
      err: failure,
    };
    try {
      await buryMessage(js, message, failure, stopping.signal);
      await o.onDead?.(workMessage(message), failure);
      log.error(fields, 'work is dead: nobody can do it');
      return { kind: 'term' };
    } catch (error) {
      log.error(
        { ...fields, cause: toFailure(error) },
        'work is dead, but that could not be recorded; it will come again',
      );
      return { kind: 'nak', delayMs: deadRetryMs };
    }
  }

  /** Attempts before this delivery that failed, by an error or by the death of their process. */
  async function failedBefore(message: JsMsg): Promise<number> {
    const before = message.info.deliveryCount - 1;
    // Hand-backs matter only where their number decides.
    return before + 1 < o.maxDeliver ? before : before - (await handbacks.count(message));
  }

  async function attempt(message: JsMsg): Promise<Verdict> {
    if ((await failedBefore(message)) >= o.maxDeliver) {
      return bury(message, new Failure('aborted', 'every attempt ended without a word', { reason: 'WORKERS_DIED' }));
    }
    const attributes = {
      [attribute.messagingSystem]: 'nats',
      [attribute.messagingDestinationName]: stream,
      [attribute.messagingConsumerGroupName]: durable,
      [attribute.messagingOperationName]: 'process',
      [attribute.messagingOperationType]: 'process',
    };
    const h = message.headers;
    const span = {
      kind: 'consumer',
      attributes,
      parent: extractHeaders({ get: (name) => h?.get(name) }),
      links: [h?.get('traceparent')],
    } as const;
    try {
      await withSpan(`process ${durable}`, span, () => o.handler(workMessage(message), stopping.signal));
      return { kind: 'ack' };
    } catch (error) {
      return judge(message, error);
    }
  }

  async function judge(message: JsMsg, error: unknown): Promise<Verdict> {
    if (error instanceof Requeue) return handBack(message, error.delayMs);
    const failure = toFailure(error);
    const cutOff = stopping.signal.aborted && (failure.retryable || failure.code === 'cancelled');
    if (cutOff) return handBack(message, 0);
    const failed = (await failedBefore(message)) + 1;
    if (!failure.retryable || failed >= o.maxDeliver) return bury(message, failure);
    const pauses = typeof o.backoffMs === 'number' ? [o.backoffMs] : o.backoffMs;
    const delayMs = failure.retryAfterMs ?? pauses[Math.min(failed, pauses.length) - 1] ?? 0;
    log.warn(
      { durable, subject: message.subject, sequence: message.seq, failed, retry_in_ms: delayMs, err: failure },
      'work failed; it will be tried again',
    );
    return { kind: 'nak', delayMs };
  }

  async function handBack(message: JsMsg, delayMs: number): Promise<Verdict> {
    const signal = AbortSignal.timeout(stopping.signal.aborted ? stoppingPatienceMs : settlePatienceMs);
    await handbacks.record(message, signal).catch((error: unknown) => {
      log.warn(
        { durable, sequence: message.seq, err: toFailure(error) },
        'a hand-back was not noted and counts as a failed attempt',
      );
    });
    return { kind: 'nak', delayMs };
  }

  async function take(message: JsMsg): Promise<void> {
    const known = running.get(message.seq);
    if (known !== undefined) {
      known.message = message;
      await handbacks.record(message, AbortSignal.timeout(stoppingPatienceMs)).catch(() => undefined);
      return;
    }
    const run = { message };
    running.set(message.seq, run);
    const heartbeat = setInterval(() => run.message.working(), o.ackWaitMs / 3);
    const finish = (): void => {
      clearInterval(heartbeat);
      running.delete(message.seq);
    };
    try {
      const decided = unsettled.get(message.seq);
      const verdict = decided ?? (stopping.signal.aborted ? await handBack(message, 0) : await attempt(message));
      const settled = settle(run, verdict).finally(() => settling.delete(settled));
      settling.add(settled);
      void settled.finally(finish);
      // A broker that was killed may have forgotten that it delivered this. It will deliver it again, which needs a free place to be noticed.
      await Promise.race([settled, pause(settleInPlaceMs)]);
    } catch (error) {
      // Only the broker can be the cause here. The message comes again after ackWaitMs.
      log.warn({ durable, sequence: message.seq, err: toFailure(error) }, 'work was left where it was');
      finish();
    }
  }

  async function place(): Promise<void> {
    let away = false;
    while (!stopping.signal.aborted) {
      try {
        const message = await next();
        if (away) log.info({ durable }, 'the broker is back; taking work again');
        away = false;
        if (message !== null) await take(message);
      } catch (error) {
        if (error instanceof errors.ClosedConnectionError || nc.isClosed()) return;
        if (!away && !stopping.signal.aborted)
          log.warn({ durable, err: error }, 'cannot take work; trying again until the broker is back');
        away = true;
        await pause(awayPauseMs, stopping.signal).catch(() => undefined);
        await reopenIfLost(error);
      }
    }
  }

  async function reopenIfLost(error: unknown): Promise<void> {
    const lost = error instanceof JetStreamApiError && error.code === JetStreamApiCodes.ConsumerNotFound;
    // A request to a consumer that is gone is answered by nobody, or by a status in place of messages.
    if (!lost && !(error instanceof Error && /no responders|consumer|heartbeats/i.test(error.message))) return;
    consumer = await openConsumer().catch(() => consumer);
  }

  const places = Promise.all(Array.from({ length: o.concurrency }, place));
  const stop = async (): Promise<void> => {
    o.signal?.removeEventListener('abort', onAbort);
    if (!stopping.signal.aborted) stopping.abort(stopReason);
    await places;
    await Promise.all(settling);
  };
  const onAbort = (): void => void stop();
  if (o.signal?.aborted === true) onAbort();
  else o.signal?.addEventListener('abort', onAbort, { once: true });
  return { stop };
}

const workMessage = (message: JsMsg): WorkMessage => ({
  subject: message.subject,
  data: message.data,
  headers: headersOf(message.headers),
  sequence: message.seq,
  deliveryCount: message.info.deliveryCount,
  time: message.time,
});

/** Where the broker listens for what became of a delivery; the client has it, but not in its types. */
const replyOf = (message: JsMsg): string => (message as JsMsg & { reply: string }).reply;

/** The protocol's words. Sent as requests, so that the broker's answer tells that it heard. */
function payloadOf(verdict: Verdict): string {
  if (verdict.kind === 'ack') return '+ACK';
  if (verdict.kind === 'term') return '+TERM';
  return verdict.delayMs > 0 ? `-NAK ${JSON.stringify({ delay: nanos(verdict.delayMs) })}` : '-NAK';
}
