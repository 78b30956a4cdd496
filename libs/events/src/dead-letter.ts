import type { Failure } from '@medmesh/errors';
import {
  JetStreamApiCodes,
  JetStreamApiError,
  type JetStreamClient,
  type JetStreamManager,
  type JsMsg,
} from '@nats-io/jetstream';
import { headers } from '@nats-io/transport-node';
import { untilBrokerAnswers } from './broker.ts';
import { encodeToken } from './tokens.ts';

/** Names of the headers that say why a message is dead. */
export const deadHeaders = {
  code: 'mm-dead-code',
  reason: 'mm-dead-reason',
  deliveries: 'mm-dead-deliveries',
  subject: 'mm-dead-subject',
} as const;

/**
 * Stores a copy of a message that nobody can do: on `mm.dead.v1.<kind>.<sequence>`, with its own headers and why it is dead. The message's sequence in the
 * subject and the expectation that nothing is there make it one copy, however often this runs.
 */
export async function buryMessage(
  js: JetStreamClient,
  message: JsMsg,
  failure: Failure,
  signal: AbortSignal | undefined,
): Promise<void> {
  const subject = `${message.subject.replace(/^mm\.work\.v1\./, 'mm.dead.v1.')}.${message.seq}`;
  const h = headers();
  for (const name of message.headers?.keys() ?? []) {
    // The broker's own headers are about the first storing.
    if (!name.startsWith('Nats-')) h.set(name, message.headers!.get(name));
  }
  h.set(deadHeaders.code, failure.code);
  h.set(deadHeaders.reason, failure.reason);
  h.set(deadHeaders.deliveries, String(message.info.deliveryCount));
  h.set(deadHeaders.subject, message.subject);
  const options = { headers: h, expect: { lastSubjectSequence: 0 } };
  try {
    await untilBrokerAnswers('bury a message', () => js.publish(subject, message.data, options), { signal });
  } catch (error) {
    if (!(error instanceof JetStreamApiError) || error.code !== JetStreamApiCodes.StreamWrongLastSequence) throw error;
  }
}

/**
 * Counts the times that each message was handed back on purpose. The broker counts every delivery alike, so a job that moved from worker to worker ten
 * times would look like one that failed ten times.
 */
export function createHandbacks(js: JetStreamClient, manager: JetStreamManager, durable: string) {
  const stream = 'MM_HANDBACK';
  const subjectOf = (message: JsMsg): string => `mm.handback.v1.${encodeToken(durable)}.${message.seq}`;
  return {
    async record(message: JsMsg, signal?: AbortSignal): Promise<void> {
      const subject = subjectOf(message);
      const msgID = `${subject}.${message.info.deliveryCount}`;
      await untilBrokerAnswers('note a hand-back', () => js.publish(subject, new Uint8Array(), { msgID }), { signal });
    },
    async count(message: JsMsg): Promise<number> {
      const subject = subjectOf(message);
      const info = await untilBrokerAnswers('count hand-backs', () =>
        manager.streams.info(stream, { subjects_filter: subject }),
      );
      return info.state.subjects?.[subject] ?? 0;
    },
  };
}
