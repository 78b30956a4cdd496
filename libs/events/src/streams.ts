import { Failure } from '@medmesh/errors';
import {
  DiscardPolicy,
  JetStreamApiCodes,
  JetStreamApiError,
  type JetStreamManager,
  jetstreamManager,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
} from '@nats-io/jetstream';
import { type NatsConnection, nanos } from '@nats-io/transport-node';
import { answerTimeoutMs, untilBrokerAnswers } from './broker.ts';

const day = 24 * 60 * 60 * 1000;

type Definition = Pick<StreamConfig, 'name' | 'subjects' | 'retention'> & Partial<StreamConfig>;

/** Every stream of medmesh. On disk, whatever the broker's default is: work must outlive it. */
const definitions: readonly Definition[] = [
  {
    name: 'MM_WORK',
    description: 'work to be done, each message until it is',
    subjects: ['mm.work.v1.>'],
    retention: RetentionPolicy.Workqueue,
    // A full queue refuses new work; it never drops old.
    discard: DiscardPolicy.New,
    duplicate_window: nanos(2 * 60 * 1000),
  },
  {
    name: 'MM_EVENTS',
    description: 'what happened; a cursor is a sequence',
    subjects: ['mm.evt.v1.>'],
    retention: RetentionPolicy.Limits,
    max_age: nanos(90 * day),
    max_msgs_per_subject: 100_000,
  },
  {
    name: 'MM_AUDIT',
    description: 'who did what; never changed',
    subjects: ['mm.audit.v1.>'],
    retention: RetentionPolicy.Limits,
    deny_delete: true,
    deny_purge: true,
  },
  {
    name: 'MM_DEAD',
    description: 'work that nobody could do',
    subjects: ['mm.dead.v1.>'],
    retention: RetentionPolicy.Limits,
    max_age: nanos(30 * day),
  },
  {
    name: 'MM_HANDBACK',
    description:
      'one message for each time that work was handed back on purpose, which does not count as a failed attempt',
    subjects: ['mm.handback.v1.>'],
    retention: RetentionPolicy.Limits,
    max_age: nanos(30 * day),
    max_msgs_per_subject: 10_000,
  },
];

/** The stream that keeps a subject: the second word of every subject names it. */
export function streamOf(subject: string): string {
  const stream = definitions.find(({ subjects }) => subject.startsWith(subjects[0]!.slice(0, -1)));
  if (stream === undefined) {
    throw new Failure('internal', `no stream keeps the subject ${subject}`, { reason: 'SUBJECT_UNKNOWN' });
  }
  return stream.name;
}

export type EnsureStreamsOptions = {
  /** Copies in a cluster; 1 on a single server. */
  replicas?: number;
};

/**
 * Makes the streams that are missing and brings the others to their definition. Safe to run by every process at once.
 * @throws Failure `failed_precondition` STREAM_CONFLICT if a stream exists in a form that cannot be changed into ours.
 */
export async function ensureStreams(nc: NatsConnection, o: EnsureStreamsOptions = {}): Promise<void> {
  const manager = await untilBrokerAnswers('reach JetStream', () => jetstreamManager(nc, { timeout: answerTimeoutMs }));
  for (const definition of definitions) {
    const config = { storage: StorageType.File, num_replicas: o.replicas ?? 1, ...definition };
    await untilBrokerAnswers(`set up the stream ${definition.name}`, () => ensureStream(manager, config));
  }
}

async function ensureStream(manager: JetStreamManager, config: Definition): Promise<void> {
  try {
    const current = await currentConfig(manager, config.name);
    if (current === undefined) await manager.streams.add(config);
    else if (differs(config, current)) await manager.streams.update(config.name, { ...current, ...config });
  } catch (error) {
    if (!(error instanceof JetStreamApiError) || error.status === 503) throw error;
    throw new Failure('failed_precondition', `the stream ${config.name} exists in another form: ${error.message}`, {
      reason: 'STREAM_CONFLICT',
      metadata: { stream: config.name },
      cause: error,
    });
  }
}

async function currentConfig(manager: JetStreamManager, name: string): Promise<StreamConfig | undefined> {
  try {
    return (await manager.streams.info(name)).config;
  } catch (error) {
    if (error instanceof JetStreamApiError && error.code === JetStreamApiCodes.StreamNotFound) return undefined;
    throw error;
  }
}

const differs = (wanted: Definition, current: StreamConfig): boolean =>
  Object.entries(wanted).some(
    ([key, value]) => JSON.stringify(current[key as keyof StreamConfig]) !== JSON.stringify(value),
  );
