import { randomUUID } from 'node:crypto';
import { names } from '@medmesh/catalog';
import { type Publisher, subjects } from '@medmesh/events';
import { lifecycle } from '@medmesh/proto';
import { trace } from '@opentelemetry/api';

/** What an event says; the rest is filled in. `message` is for people and never holds patient text. */
export type NewJobEvent = {
  reason: string;
  message: string;
  level?: lifecycle.JobEvent_Level;
  payload?: lifecycle.JobEvent['payload'];
  /** Default: random. A fixed id makes a repeat a duplicate, within the stream's window. */
  eventId?: string;
};

/** Publishes what happens to jobs. */
export type JobEvents = {
  publish(jobName: string, event: NewJobEvent): Promise<number>;
  /** Publishes on the job's terminal subject, which takes exactly one message. False if there was one already. */
  publishTerminal(jobName: string, event: NewJobEvent): Promise<boolean>;
};

const eventType = (event: NewJobEvent): string => event.payload?.$case ?? 'note';

function encode(jobName: string, event: NewJobEvent): { id: string; bytes: Uint8Array } {
  const id = event.eventId ?? randomUUID();
  const message = lifecycle.JobEvent.fromPartial({
    fineTuningJob: jobName,
    eventId: id,
    time: new Date(),
    level: event.level ?? lifecycle.JobEvent_Level.INFO,
    reason: event.reason,
    message: event.message,
    traceId: trace.getActiveSpan()?.spanContext().traceId ?? '',
  });
  message.payload = event.payload;
  return { id, bytes: lifecycle.JobEvent.encode(message).finish() };
}

export function createJobEvents(publisher: Publisher): JobEvents {
  return {
    async publish(jobName, event) {
      const { project, job } = names.job.parse(jobName);
      const { id, bytes } = encode(jobName, event);
      const type = `medmesh.lifecycle.v1.JobEvent.${eventType(event)}`;
      const { sequence } = await publisher.publish(subjects.jobEvent(project, job, eventType(event)), bytes, {
        messageId: id,
        type,
      });
      return sequence;
    },
    async publishTerminal(jobName, event) {
      const { project, job } = names.job.parse(jobName);
      const { id, bytes } = encode(jobName, event);
      try {
        await publisher.publish(subjects.terminal(project, job), bytes, {
          messageId: id,
          type: 'medmesh.lifecycle.v1.JobEvent.terminal',
          expectLastSubjectSequence: 0,
        });
        return true;
      } catch (error) {
        // Somebody else published it: the broker refuses a second message on the subject.
        if ((error as { code?: unknown }).code === 'aborted') return false;
        throw error;
      }
    },
  };
}
