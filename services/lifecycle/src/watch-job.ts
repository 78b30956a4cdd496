import { names } from '@medmesh/catalog';
import { Failure } from '@medmesh/errors';
import { readEvents, subjects } from '@medmesh/events';
import { lifecycle } from '@medmesh/proto';
import type { ServiceContext } from '@medmesh/service';
import type { LifecycleDeps } from './deps.ts';
import { jobEntry } from './read-jobs.ts';

export type WatchDeps = LifecycleDeps & { nc: ServiceContext<never>['nc'] };

const durationMs = (duration: { seconds: number; nanos: number } | undefined): number =>
  duration === undefined ? 0 : duration.seconds * 1000 + duration.nanos / 1e6;

const decode = (message: { data: Uint8Array; sequence: number }): lifecycle.JobEvent => ({
  ...lifecycle.JobEvent.decode(message.data),
  sequence: message.sequence,
});

/** Streams a job's events from the cursor on; ends after the terminal one unless asked to stay. */
export async function* watchFineTuningJob(
  deps: WatchDeps,
  request: lifecycle.WatchFineTuningJobRequest,
  signal: AbortSignal,
): AsyncGenerator<lifecycle.JobEvent> {
  await jobEntry(deps, request.name);
  const { project, job } = names.job.parse(request.name);
  const terminal = subjects.terminal(project, job);
  const intervalMs = durationMs(request.metricInterval);
  let lastMetricMs = Number.NEGATIVE_INFINITY;
  const messages = readEvents({
    nc: deps.nc,
    subject: subjects.jobEvents(project, job),
    afterSequence: request.afterSequence,
    follow: true,
    signal,
  });
  for await (const message of messages) {
    const event = decode(message);
    if (event.payload?.$case === 'metrics' && intervalMs > 0) {
      const time = event.time?.getTime() ?? 0;
      const { step, totalSteps } = event.payload.value.progress ?? { step: 0, totalSteps: 0 };
      // The last step is always sent.
      if (time - lastMetricMs < intervalMs && step !== totalSteps) continue;
      lastMetricMs = time;
    }
    yield event;
    if (message.subject === terminal && !request.followAfterTerminal) return;
  }
}

async function* pastEvents(deps: WatchDeps, name: string, afterSequence: number): AsyncGenerator<lifecycle.JobEvent> {
  const { project, job } = names.job.parse(name);
  for await (const message of readEvents({
    nc: deps.nc,
    subject: subjects.jobEvents(project, job),
    afterSequence,
    follow: false,
    signal: deps.signal,
  })) {
    yield decode(message);
  }
}

/** A page of a job's events; the token is the sequence of the last one. */
export async function listJobEvents(
  deps: WatchDeps,
  request: lifecycle.ListJobEventsRequest,
): Promise<lifecycle.ListJobEventsResponse> {
  await jobEntry(deps, request.parent);
  const pageSize = Math.min(1000, request.pageSize <= 0 ? 50 : request.pageSize);
  const after = request.pageToken === '' ? 0 : Number(request.pageToken);
  if (!Number.isSafeInteger(after) || after < 0) {
    throw new Failure('invalid_argument', 'page_token is not one that this method returned', {
      reason: 'PAGE_TOKEN_MISMATCH',
    });
  }
  const jobEvents: lifecycle.JobEvent[] = [];
  for await (const event of pastEvents(deps, request.parent, after)) {
    if (jobEvents.length === pageSize) return { jobEvents, nextPageToken: String(jobEvents.at(-1)?.sequence ?? 0) };
    jobEvents.push(event);
  }
  return { jobEvents, nextPageToken: '' };
}

/** Progress at evenly chosen steps. */
export async function queryJobMetrics(
  deps: WatchDeps,
  request: lifecycle.QueryJobMetricsRequest,
): Promise<lifecycle.QueryJobMetricsResponse> {
  await jobEntry(deps, request.name);
  const wanted = Math.min(2000, request.pointCount <= 0 ? 200 : request.pointCount);
  // A restarted worker repeats steps since its checkpoint: the newest sample of a step counts.
  const samples = new Map<number, lifecycle.Progress>();
  for await (const event of pastEvents(deps, request.name, 0)) {
    if (event.payload?.$case !== 'metrics' || event.payload.value.progress === undefined) continue;
    samples.set(event.payload.value.progress.step, event.payload.value.progress);
  }
  const all = [...samples.values()].sort((a, b) => a.step - b.step);
  if (all.length <= wanted) return { points: all };
  const points = Array.from(
    { length: wanted },
    (_, i) => all[Math.round((i * (all.length - 1)) / Math.max(1, wanted - 1))],
  );
  return { points: points.filter((point) => point !== undefined) };
}
