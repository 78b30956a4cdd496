import { names } from '@medmesh/catalog';
import { notFound } from '@medmesh/errors';
import type { lifecycle } from '@medmesh/proto';
import { type Entry, keyOf } from '@medmesh/records';
import { withEtag } from './create-job.ts';
import type { LifecycleDeps } from './deps.ts';
import { parseJobFilter } from './job-filter.ts';

/** A job's record; Failure `not_found`. */
export async function jobEntry(deps: LifecycleDeps, name: string): Promise<Entry<lifecycle.FineTuningJob>> {
  names.job.parse(name);
  const entry = await deps.catalog.jobs.get(keyOf(name));
  if (entry === undefined) throw notFound(name);
  return entry;
}

export async function getFineTuningJob(
  deps: LifecycleDeps,
  request: lifecycle.GetFineTuningJobRequest,
): Promise<lifecycle.FineTuningJob> {
  const entry = await jobEntry(deps, request.name);
  return withEtag(entry.value, entry.revision);
}

/** Lists a project's jobs. A page may hold fewer jobs than asked for when a filter leaves some out; go on until the token is empty. */
export async function listFineTuningJobs(
  deps: LifecycleDeps,
  request: lifecycle.ListFineTuningJobsRequest,
): Promise<lifecycle.ListFineTuningJobsResponse> {
  const { project } = names.project.parse(request.parent);
  const accepts = parseJobFilter(request.filter);
  const page = await deps.catalog.jobs.list(keyOf(`projects/${project}/fineTuningJobs/`), {
    pageSize: request.pageSize,
    pageToken: request.pageToken,
  });
  return {
    fineTuningJobs: page.entries
      .filter((entry) => accepts(entry.value))
      .map((entry) => withEtag(entry.value, entry.revision)),
    nextPageToken: page.nextPageToken,
  };
}
