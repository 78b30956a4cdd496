import { Failure } from '@medmesh/errors';
import { stateName } from '@medmesh/jobs';
import type { lifecycle } from '@medmesh/proto';

type Test = (job: lifecycle.FineTuningJob) => boolean;

const term = /^\s*(state|display_name|labels\.([a-z0-9_-]{1,63}))\s*=\s*"([^"\\]*)"\s*$/i;

/** The part of AIP-160 that jobs are filtered by: `state="RUNNING" AND labels.ward="a"`. Empty accepts all. */
export function parseJobFilter(filter: string): Test {
  if (filter.trim() === '') return () => true;
  const tests = filter.split(/\s+AND\s+/).map((part): Test => {
    const match = term.exec(part);
    if (match === null) {
      throw new Failure(
        'invalid_argument',
        `filter: cannot read ${JSON.stringify(part)}; write state="RUNNING", display_name="…" or labels.key="value", joined by AND`,
        {
          reason: 'FIELD_INVALID',
          fields: [{ field: 'filter', description: 'cannot be read' }],
        },
      );
    }
    const [, field, label, value] = match;
    if (label !== undefined) return (job) => job.labels[label] === value;
    if (field?.toLowerCase() === 'display_name') return (job) => job.displayName === value;
    return (job) => stateName(job.state) === value?.replace(/^STATE_/, '');
  });
  return (job) => tests.every((test) => test(job));
}
