import { Failure } from '@medmesh/errors';
import { attribute, injectHeaders, withSpan } from '@medmesh/telemetry';
import { JetStreamApiCodes, JetStreamApiError, jetstream, jetstreamManager } from '@nats-io/jetstream';
import { headers, type MsgHdrs, type NatsConnection } from '@nats-io/transport-node';
import { answerTimeoutMs, untilBrokerAnswers } from './broker.ts';
import { streamOf } from './streams.ts';

export type PublishOptions = {
  /** A repeat with the same id, within two minutes, is stored once. */
  messageId: string;
  /** Full name of the payload's message, e.g. `medmesh.lifecycle.v1.JobEvent`. */
  type: string;
  /** Refuses the message unless the last one on its subject has this sequence; 0: unless it is the first. */
  expectLastSubjectSequence?: number;
  /** Without it, a broker that is away is waited for 30 s. */
  signal?: AbortSignal | undefined;
};

export interface Publisher {
  /**
   * Stores a message and returns its sequence, which is the cursor of whoever reads. Waits while the broker is away; a message whose answer was lost is
   * sent again and stored once.
   * @throws Failure `aborted` SEQUENCE_MISMATCH if `expectLastSubjectSequence` does not hold; `unavailable` BROKER_UNAVAILABLE.
   */
  publish(subject: string, bytes: Uint8Array, o: PublishOptions): Promise<{ sequence: number; duplicate: boolean }>;
}

/** Publishes protobuf messages, as the process `name`, with the headers that every message of medmesh carries: id, trace, and CloudEvents' `ce-*`. */
export function createPublisher(nc: NatsConnection, o: { name?: string } = {}): Publisher {
  const js = jetstream(nc, { timeout: answerTimeoutMs });
  const source = `/medmesh/${o.name ?? 'service'}`;

  function makeHeaders(o: PublishOptions): MsgHdrs {
    const h = headers();
    h.set('content-type', 'application/protobuf');
    h.set('ce-specversion', '1.0');
    h.set('ce-id', o.messageId);
    h.set('ce-type', o.type);
    h.set('ce-source', source);
    h.set('ce-time', new Date().toISOString());
    injectHeaders(h);
    return h;
  }

  async function send(subject: string, bytes: Uint8Array, o: PublishOptions) {
    const expected = o.expectLastSubjectSequence;
    const options = {
      msgID: o.messageId,
      headers: makeHeaders(o),
      ...(expected === undefined ? {} : { expect: { lastSubjectSequence: expected } }),
    };
    try {
      const ack = await untilBrokerAnswers(`publish on ${subject}`, () => js.publish(subject, bytes, options), {
        signal: o.signal,
      });
      return { sequence: ack.seq, duplicate: ack.duplicate };
    } catch (error) {
      if (!(error instanceof JetStreamApiError) || error.code !== JetStreamApiCodes.StreamWrongLastSequence)
        throw error;
      // It may be our own message, stored before a long outage swallowed the answer.
      const last = await newest(subject);
      if (last?.id === o.messageId) return { sequence: last.sequence, duplicate: true };
      throw new Failure('aborted', `another message came first on ${subject}`, {
        reason: 'SEQUENCE_MISMATCH',
        metadata: { subject },
        cause: error,
      });
    }
  }

  async function newest(subject: string): Promise<{ id: string; sequence: number } | undefined> {
    const manager = await untilBrokerAnswers('reach JetStream', () =>
      jetstreamManager(nc, { timeout: answerTimeoutMs }),
    );
    const message = await untilBrokerAnswers(`read ${subject}`, () =>
      manager.streams.getMessage(streamOf(subject), { last_by_subj: subject }),
    );
    return message === null ? undefined : { id: message.header.get('Nats-Msg-Id'), sequence: message.seq };
  }

  return {
    publish(subject, bytes, o) {
      const stream = streamOf(subject);
      const attributes = {
        [attribute.messagingSystem]: 'nats',
        [attribute.messagingDestinationName]: stream,
        [attribute.messagingOperationName]: 'publish',
        [attribute.messagingOperationType]: 'send',
        [attribute.messagingMessageId]: o.messageId,
      };
      return withSpan(`publish ${stream}`, { kind: 'producer', attributes }, () => send(subject, bytes, o));
    },
  };
}
