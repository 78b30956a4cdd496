import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { artifactFiles, names } from '@medmesh/catalog';
import type { Trainer } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { collectFolder } from '@medmesh/objects';
import type { lifecycle } from '@medmesh/proto';
import { type Entry, eachEntry, keyOf } from '@medmesh/records';
import { withSpan } from '@medmesh/telemetry';
import type { TrainerDeps } from './deps.ts';
import { describeAdapter } from './describe-adapter.ts';
import type { JobInputs } from './job-inputs.ts';

type Checkpoint = lifecycle.Checkpoint;

/** A job's checkpoints, oldest first. */
const all = async (deps: TrainerDeps, job: string): Promise<Entry<Checkpoint>[]> => {
  const entries = await Array.fromAsync(eachEntry(deps.catalog.checkpoints, keyOf(`${job}/checkpoints/`)));
  return entries.sort((a, b) => a.value.step - b.value.step);
};

/** The newest committed checkpoint of a job with this spec, or undefined. */
export async function newestCheckpoint(
  deps: TrainerDeps,
  job: string,
  specDigest: string,
): Promise<Checkpoint | undefined> {
  return (await all(deps, job)).findLast((entry) => entry.value.resolvedSpecDigest === specDigest)?.value;
}

export type CheckpointFacts = {
  job: lifecycle.FineTuningJob;
  fencingToken: number;
  loss: number;
  validationLoss: number | undefined;
  counters: lifecycle.TrainingCounters;
};

/** Makes the checkpoint's PEFT files an adapter that can be promoted. One whose numbers are not finite or not its own cannot; training goes on. */
async function tryDescribe(
  deps: TrainerDeps,
  trainer: Trainer,
  inputs: JobInputs,
  job: lifecycle.FineTuningJob,
  folder: string,
  signal: AbortSignal,
): Promise<void> {
  try {
    await describeAdapter(trainer, inputs, job, folder, signal);
  } catch (error) {
    if (!(error instanceof Failure && error.reason === 'EXPORT_MISMATCH')) throw error;
    deps.log.warn({ err: error, job: job.name, step: trainer.step }, 'the checkpoint cannot be promoted');
  }
}

/**
 * Writes the trainer's state, stores it as blobs, and makes it visible by one record. Nothing is visible before that; a crash leaves blobs that
 * no record names. A repeat of a step (after a restart) puts its record over the old one: the contents are equal, bit for bit.
 */
export function commitCheckpoint(
  deps: TrainerDeps,
  trainer: Trainer,
  inputs: JobInputs,
  facts: CheckpointFacts,
  signal: AbortSignal,
): Promise<Checkpoint> {
  return withSpan('trainer.checkpoint', { attributes: { 'medmesh.step': trainer.step } }, async () => {
    const dir = await mkdtemp(join(tmpdir(), 'medmesh-checkpoint-'));
    try {
      const folder = join(dir, 'checkpoint');
      await trainer.saveCheckpoint(folder);
      await tryDescribe(deps, trainer, inputs, facts.job, folder, signal);
      const { manifest, digest } = await collectFolder(deps.store, folder, 'checkpoint', {
        'medmesh.spec': facts.job.resolvedSpecDigest,
      });
      const { project, job } = names.job.parse(facts.job.name);
      const checkpoint: Checkpoint = {
        // Zero-padded, so that names sort by step.
        name: names.checkpoint.format({ project, job, step: String(trainer.step).padStart(9, '0') }),
        step: trainer.step,
        digest,
        files: artifactFiles(manifest),
        resolvedSpecDigest: facts.job.resolvedSpecDigest,
        validationLoss: facts.validationLoss,
        loss: facts.loss,
        fencingToken: facts.fencingToken,
        createTime: new Date(),
        counters: facts.counters,
      };
      await put(deps, checkpoint);
      await deps.events.publish(facts.job.name, {
        reason: 'CHECKPOINT_SAVED',
        message: `checkpoint at step ${checkpoint.step}`,
        payload: { $case: 'checkpoint', value: { checkpoint: checkpoint.name, step: checkpoint.step, digest } },
      });
      return checkpoint;
    } finally {
      await rm(dir, { recursive: true, force: true });
    }
  });
}

/** Creates the record or replaces one of an earlier owner. A record of a later owner stays: the caller has been fenced out. */
async function put(deps: TrainerDeps, checkpoint: Checkpoint): Promise<void> {
  const key = keyOf(checkpoint.name);
  const existing = await deps.catalog.checkpoints.get(key);
  if (existing === undefined) {
    await deps.catalog.checkpoints.create(key, checkpoint);
    return;
  }
  if (existing.value.fencingToken > checkpoint.fencingToken) {
    throw new Failure('aborted', `another worker already wrote ${checkpoint.name}`, { reason: 'FENCED_OUT' });
  }
  await deps.catalog.checkpoints.update(key, checkpoint, existing.revision);
}

/** Deletes all but the newest `keep` checkpoints and the best one. */
export async function pruneCheckpoints(
  deps: TrainerDeps,
  job: string,
  keep: number,
  best: string | undefined,
): Promise<void> {
  const entries = await all(deps, job);
  for (const entry of entries.slice(0, Math.max(0, entries.length - keep))) {
    if (entry.value.name !== best) await deps.catalog.checkpoints.delete(entry.key);
  }
}
