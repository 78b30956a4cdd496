import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { adapterDescriptionFile, serializeAdapterDescription } from '@medmesh/catalog';
import { engineVersion, type Trainer } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import type { lifecycle } from '@medmesh/proto';
import { withSpan } from '@medmesh/telemetry';
import { deviceNamed } from './device.ts';
import type { JobInputs } from './job-inputs.ts';
import { computeProbes, probeTokens } from './parity-probes.ts';

/**
 * Writes medmesh.json beside the PEFT files of `folder`, which the trainer has just saved: what the adapter was made of, and parity probes.
 * Failure `internal` EXPORT_MISMATCH if the files are not what was trained.
 */
export async function describeAdapter(
  trainer: Trainer,
  inputs: JobInputs,
  job: lifecycle.FineTuningJob,
  folder: string,
  signal: AbortSignal,
): Promise<void> {
  const spec = job.resolvedSpec;
  if (spec === undefined) throw new Failure('internal', 'the job has no resolved spec', { reason: 'RECORD_INVALID' });
  const device = deviceNamed(trainer.device);
  const probes = await withSpan('trainer.verify_export', {}, async () => {
    const sequences = await probeTokens(inputs.modelDir, inputs.dataset.template, inputs.model.info.vocabSize);
    return await computeProbes(trainer, folder, sequences, signal);
  });
  const description = serializeAdapterDescription({
    format: 1,
    base: { name: spec.baseModel, digest: spec.baseDigest, quantization: inputs.model.info.quantization },
    tokenizerDigest: spec.tokenizerDigest,
    templateDigest: spec.templateDigest,
    template: inputs.dataset.template,
    datasetDigests: spec.datasetDigests,
    resolvedSpecDigest: job.resolvedSpecDigest,
    job: job.name,
    seed: spec.seed,
    engine: {
      version: engineVersion,
      device: `${device.kind} ${device.isa}`,
      compute: spec.quantization?.computeDtype === 'f32' ? 'f32' : 'bf16',
    },
    probes,
  });
  await writeFile(join(folder, adapterDescriptionFile), description);
}
