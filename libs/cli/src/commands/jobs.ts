import { lifecycle } from '@medmesh/proto';
import type { Command } from 'commander';
import { withContext } from '../context.ts';
import { wholeNumber } from '../option-values.ts';
import { table } from '../output.ts';
import { describeResult, followJob } from './finetune.ts';

const stateName = (job: lifecycle.FineTuningJob) =>
  lifecycle.fineTuningJob_StateToJSON(job.state).replace('STATE_', '');

/** `jobs list|get|watch|cancel|pause|resume|delete|checkpoints|promote`. */
export function addJobsCommands(program: Command, signal: AbortSignal): void {
  const group = program.command('jobs').description('fine-tuning jobs');
  group
    .command('list')
    .description('list jobs')
    .option('--filter <filter>', 'e.g. state="RUNNING" AND labels.ward="a"', '')
    .action(
      withContext(signal, async (context, options: { filter: string }, _command: Command) => {
        const client = await context.client();
        const all = await Array.fromAsync(client.jobs.list(options.filter));
        const rows = all.map((job) => [
          job.name.split('/').at(-1) ?? '',
          stateName(job),
          `${job.progress?.step ?? 0}/${job.progress?.totalSteps ?? 0}`,
          job.progress === undefined || job.progress.step === 0 ? '-' : job.progress.loss.toFixed(4),
          job.adapter.split('/').at(-1) ?? '',
          job.createTime?.toISOString() ?? '',
        ]);
        context.out.result(
          all.map((job) => lifecycle.FineTuningJob.toJSON(job)),
          table(['ID', 'STATE', 'STEP', 'LOSS', 'ADAPTER', 'CREATED'], rows),
        );
      }),
    );
  group
    .command('watch <job>')
    .description('follow a job to its end')
    .action(
      withContext(signal, async (context, id: string, _options: object, _command: Command) => {
        const client = await context.client();
        const job = await followJob(context, client, id);
        context.out.result(lifecycle.FineTuningJob.toJSON(job), describeResult(job));
        if (job.state !== lifecycle.FineTuningJob_State.SUCCEEDED) process.exitCode = 1;
      }),
    );
  group
    .command('checkpoints <job>')
    .description('list a job’s checkpoints')
    .action(
      withContext(signal, async (context, id: string, _options: object, _command: Command) => {
        const client = await context.client();
        const all = await Array.fromAsync(client.jobs.checkpoints(id));
        const rows = all.map((c) => [
          String(c.step),
          c.loss.toFixed(4),
          c.validationLoss?.toFixed(4) ?? '-',
          c.digest,
          c.createTime?.toISOString() ?? '',
        ]);
        context.out.result(
          all.map((c) => lifecycle.Checkpoint.toJSON(c)),
          table(['STEP', 'LOSS', 'VALIDATION', 'DIGEST', 'CREATED'], rows),
        );
      }),
    );
  group
    .command('promote')
    .description('make an adapter of a checkpoint')
    .argument('<job>')
    .argument('<step>', 'the checkpoint’s step', wholeNumber(1))
    .requiredOption('--id <id>', 'id of the new adapter')
    .action(
      withContext(signal, async (context, id: string, step: number, options: { id: string }, _command: Command) => {
        const client = await context.client();
        const adapter = await client.jobs.promote(id, step, options.id);
        context.out.result(
          lifecycle.Adapter.toJSON(adapter),
          `${adapter.name}: step ${step}, loss ${adapter.finalLoss.toFixed(4)}, ${adapter.digest}`,
        );
      }),
    );
  for (const verb of ['get', 'cancel', 'pause', 'resume'] as const) {
    const description = {
      get: 'show a job',
      cancel: 'stop a job',
      pause: 'checkpoint a job and free its worker',
      resume: 'go on with a paused job',
    }[verb];
    group
      .command(`${verb} <job>`)
      .description(description)
      .action(
        withContext(signal, async (context, id: string, _options: object, _command: Command) => {
          const client = await context.client();
          const job = await client.jobs[verb](id);
          context.out.result(lifecycle.FineTuningJob.toJSON(job), describeResult(job));
        }),
      );
  }
  group
    .command('delete <job>')
    .description('delete a job that has ended, with its checkpoints')
    .action(
      withContext(signal, async (context, id: string, _options: object, _command: Command) => {
        const client = await context.client();
        await client.jobs.delete(id);
        context.out.result({ deleted: client.jobs.name(id) }, `deleted ${client.jobs.name(id)}`);
      }),
    );
}
