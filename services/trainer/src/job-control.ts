import { State } from '@medmesh/jobs';
import type { lifecycle } from '@medmesh/proto';
import { type Bucket, keyOf } from '@medmesh/records';

/** What a user wants of a running job, read from its record as it changes. */
export type JobControl = {
  /** Aborted when the user cancels: the engine stops within the step. */
  readonly cancelled: AbortSignal;
  readonly pauseRequested: boolean;
  /** True once for every request for a checkpoint. */
  takeCheckpointRequest(): boolean;
  close(): Promise<void>;
};

export function watchJob(
  jobs: Bucket<lifecycle.FineTuningJob>,
  name: string,
  fencingToken: number,
  onFenced: () => void,
): JobControl {
  const cancel = new AbortController();
  const stop = new AbortController();
  let pauseRequested = false;
  let askedAt = 0;
  let servedAt = 0;

  const follow = async () => {
    for await (const change of jobs.watch(keyOf(name), stop.signal)) {
      if (!('value' in change)) {
        // A job that is deleted while it runs has nobody who wants its result.
        cancel.abort();
        continue;
      }
      const job = change.value;
      if (job.fencingToken > fencingToken) onFenced();
      if (job.state === State.CANCELLING || job.state === State.CANCELLED) cancel.abort();
      pauseRequested = job.state === State.PAUSING;
      const request = job.conditions.find((condition) => condition.type === 'CHECKPOINT_REQUESTED');
      askedAt = Math.max(askedAt, request?.time?.getTime() ?? 0);
    }
  };
  const following = follow().catch((error: unknown) => {
    if (!stop.signal.aborted) throw error;
  });

  return {
    cancelled: cancel.signal,
    get pauseRequested() {
      return pauseRequested;
    },
    takeCheckpointRequest() {
      const wanted = askedAt > servedAt;
      servedAt = askedAt;
      return wanted;
    },
    async close() {
      stop.abort();
      await following;
    },
  };
}
