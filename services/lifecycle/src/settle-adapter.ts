import { Failure } from '@medmesh/errors';
import { isTerminal, State } from '@medmesh/jobs';
import { lifecycle } from '@medmesh/proto';
import { type Entry, keyOf } from '@medmesh/records';
import type { LifecycleDeps } from './deps.ts';

/**
 * A trainer writes an adapter's record before its job's compare-and-set to SUCCEEDED, which is the moment the adapter begins to exist, and makes
 * it ACTIVE after that. If it died in between, this finishes the work: ACTIVE if the job succeeded with this adapter, gone if it ended otherwise.
 * Returns the visible record, or undefined.
 */
export async function settleAdapter(
  deps: LifecycleDeps,
  entry: Entry<lifecycle.Adapter>,
): Promise<Entry<lifecycle.Adapter> | undefined> {
  if (entry.value.state !== lifecycle.Adapter_State.UNSPECIFIED) return entry;
  const job = (await deps.catalog.jobs.get(keyOf(entry.value.fineTuningJob)))?.value;
  try {
    if (job?.state === State.SUCCEEDED && job.adapter === entry.value.name) {
      return await deps.catalog.adapters.update(
        entry.key,
        { ...entry.value, state: lifecycle.Adapter_State.ACTIVE },
        entry.revision,
      );
    }
    if (job === undefined || isTerminal(job.state)) await deps.catalog.adapters.delete(entry.key, entry.revision);
  } catch (error) {
    // Somebody else settles it at this moment.
    if (!(error instanceof Failure && (error.code === 'aborted' || error.code === 'not_found'))) throw error;
    const now = await deps.catalog.adapters.get(entry.key);
    return now?.value.state === lifecycle.Adapter_State.UNSPECIFIED ? undefined : now;
  }
  return undefined;
}
