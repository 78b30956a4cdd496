import { type Publisher, subjects } from '@medmesh/events';
import { type lifecycle, trainer } from '@medmesh/proto';

/** How a job gets a worker. `local`: a standing trainer pulls it from the queue. A cluster's launcher starts one process for each job. */
export type JobLauncher = {
  kind: 'local';
  /** May be called again for the same job and attempt: the second time changes nothing. */
  launch(job: lifecycle.FineTuningJob): Promise<void>;
};

export const createLocalLauncher = (publisher: Publisher): JobLauncher => ({
  kind: 'local',
  async launch(job) {
    const work: trainer.TrainingWork = { fineTuningJob: job.name, uid: job.uid };
    await publisher.publish(subjects.work('training'), trainer.TrainingWork.encode(work).finish(), {
      // The record's moment is part of the id: a job that waits again (after a pause, or found by reconciliation) is a new message.
      messageId: `${job.uid}-${job.attempt}-${job.updateTime?.getTime() ?? 0}`,
      type: 'medmesh.trainer.v1.TrainingWork',
    });
  },
});
