import { encodeToken } from './tokens.ts';

/** Who works: one subject, and one durable consumer, for each class of workers. */
export type WorkKind = 'training' | 'model' | 'dataset';

const event = (project: string, resource: string, id: string, type: string): string =>
  `mm.evt.v1.${encodeToken(project)}.${encodeToken(resource)}.${encodeToken(id)}.${encodeToken(type)}`;

/** Every subject of medmesh. Ids are escaped, so a name with dots stays one token. */
export const subjects = {
  work: (kind: WorkKind): string => `mm.work.v1.${kind}`,
  /** Work of long-running operations of one kind, e.g. `model.import`. */
  operation: (kind: string): string => `mm.work.v1.operation.${encodeToken(kind)}`,
  /** What happened: `mm.evt.v1.<project>.<resource>.<id>.<type>`. */
  event,
  jobEvent: (project: string, jobId: string, type: string): string => event(project, 'job', jobId, type),
  /** Every event of a job, the terminal one too. */
  jobEvents: (project: string, jobId: string): string =>
    `mm.evt.v1.${encodeToken(project)}.job.${encodeToken(jobId)}.>`,
  /** Takes one message for each job: publish with `expectLastSubjectSequence: 0`. */
  terminal: (project: string, jobId: string): string => event(project, 'job', jobId, 'terminal'),
  adapterPublished: (project: string, adapterId: string): string => event(project, 'adapter', adapterId, 'published'),
  /** Every adapter of every project that is published. */
  everyAdapterPublished: 'mm.evt.v1.*.adapter.*.published',
  audit: (project: string, type: string): string => `mm.audit.v1.${encodeToken(project)}.${encodeToken(type)}`,
  /** Where work goes that nobody can do. */
  everyDeadLetter: 'mm.dead.v1.>',
} as const;
