import { Failure } from '@medmesh/errors';
import type { trainer } from '@medmesh/proto';
import { type Bucket, type Entry, keyOf } from '@medmesh/records';

type Leases = Bucket<trainer.Lease>;

/** Whether nobody holds it any more. */
export const leaseExpired = (lease: trainer.Lease | undefined, nowMs: number): boolean =>
  lease === undefined || lease.expireTimeMs <= nowMs;

/**
 * Takes the lease of a job, if nobody holds it. Each owner gets a greater fencing number: a late owner's compare-and-set fails, and so do its
 * writes to the job, which carry the smaller number. Returns undefined if another worker holds it.
 */
export async function takeLease(
  leases: Leases,
  job: string,
  worker: string,
  ttlMs: number,
  now: () => number,
): Promise<Entry<trainer.Lease> | undefined> {
  const key = keyOf(job);
  const current = await leases.get(key);
  if (current !== undefined && !leaseExpired(current.value, now()) && current.value.worker !== worker) return undefined;
  const lease: trainer.Lease = {
    fineTuningJob: job,
    worker,
    fencingToken: (current?.value.fencingToken ?? 0) + 1,
    expireTimeMs: now() + ttlMs,
  };
  try {
    return current === undefined ? await leases.create(key, lease) : await leases.update(key, lease, current.revision);
  } catch (error) {
    if (error instanceof Failure && (error.code === 'already_exists' || error.code === 'aborted')) return undefined;
    throw error;
  }
}

/** Makes the lease last longer. Failure `aborted` FENCED_OUT if another worker took it. */
export async function renewLease(
  leases: Leases,
  held: Entry<trainer.Lease>,
  ttlMs: number,
  now: () => number,
): Promise<Entry<trainer.Lease>> {
  try {
    return await leases.update(held.key, { ...held.value, expireTimeMs: now() + ttlMs }, held.revision);
  } catch (error) {
    if (error instanceof Failure && error.code === 'aborted') {
      throw new Failure('aborted', `another worker took over ${held.value.fineTuningJob}`, {
        reason: 'FENCED_OUT',
        cause: error,
      });
    }
    throw error;
  }
}

/** Gives the lease back at once. Keeps the fencing number, so that the next owner's is greater. */
export async function releaseLease(leases: Leases, held: Entry<trainer.Lease>): Promise<void> {
  await leases.update(held.key, { ...held.value, expireTimeMs: 0 }, held.revision).catch((error: unknown) => {
    if (!(error instanceof Failure && error.code === 'aborted')) throw error;
  });
}

/** Whether a write with this fencing number may still change the job. */
export const holdsJob = (job: { fencingToken: number }, fencingToken: number): boolean =>
  job.fencingToken <= fencingToken;
