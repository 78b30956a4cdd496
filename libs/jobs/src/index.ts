export { type AdapterFacts, adapterOfJob } from './adapter-of-job.ts';
export { type EndJob, endJob, publishTerminalEvent } from './end-job.ts';
export { createJobEvents, type JobEvents, type NewJobEvent } from './events.ts';
export { holdsJob, leaseExpired, releaseLease, renewLease, takeLease } from './lease.ts';
export { canonicalJson, specDigest } from './spec-digest.ts';
export { isTerminal, State, stateName, transition } from './state.ts';
export { trainerOptions } from './trainer-options.ts';
