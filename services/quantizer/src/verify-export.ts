import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type AdapterDescription, adapterDescriptionFile, parseAdapterDescription } from '@medmesh/catalog';
import { loadModel, type VerifiedGguf, verifyGguf } from '@medmesh/engine';
import { Failure, notFound } from '@medmesh/errors';
import { lifecycle } from '@medmesh/proto';
import type { QuantizerDeps, Run } from './deps.ts';
import { usableAdapter } from './merge-adapter.ts';
import { chooseModelFiles } from './model-files.ts';
import { openFolder } from './sources/folder.ts';
import type { SourceFile } from './sources/model-source.ts';
import { stageFiles } from './stage-files.ts';
import { stagingFolder } from './staging.ts';

/** A PEFT folder, to be applied to the adapter's base, a model folder that stands for itself, or one GGUF file. */
type Export = { kind: 'adapter' | 'model' | 'gguf'; files: SourceFile[] };

const peftFiles: readonly string[] = ['adapter_config.json', 'adapter_model.safetensors'];

function exportOf(files: readonly SourceFile[], uri: string): Export {
  const peft = files.filter(({ path }) => peftFiles.includes(path));
  if (peft.length === peftFiles.length) return { kind: 'adapter', files: peft };
  const gguf = files.filter(({ path }) => path.endsWith('.gguf'));
  if (gguf.length > 0 && !files.some(({ path }) => path === 'config.json')) {
    if (gguf.length > 1) {
      throw new Failure('invalid_argument', `the folder has ${gguf.length} GGUF files; name one of them`, {
        reason: 'MODEL_FILES_INVALID',
        fields: [{ field: 'uri', description: `has ${gguf.length} GGUF files` }],
      });
    }
    return { kind: 'gguf', files: gguf };
  }
  return { kind: 'model', files: chooseModelFiles(files, uri) };
}

type Probes = AdapterDescription['probes'];

/** max |Δ log p| over all tokens of the adapter's parity probes. */
async function largestDifference(probes: Probes, scoresOf: (probe: number) => Promise<Float32Array>): Promise<number> {
  let largest = 0;
  for (const [probe, { logprobs }] of probes.entries()) {
    const scores = await scoresOf(probe);
    for (const [i, expected] of logprobs.entries()) {
      const difference = Math.abs((scores[i] ?? Number.NaN) - expected);
      if (Number.isNaN(difference))
        throw new Failure('failed_precondition', 'the export gives no finite score for a parity probe', {
          reason: 'PARITY_MISMATCH',
        });
      largest = Math.max(largest, difference);
    }
  }
  return largest;
}

/** How far a figure may be from the one that was recorded: sums are made in another order on another processor. */
const figureTolerance = 0.02;

/** Refuses a file whose distance from its source is not the one that was written into it. */
function checkRecorded({ recorded, measured }: VerifiedGguf): void {
  if (recorded === undefined) return;
  for (const name of ['weightMean', 'weightMax', 'logprobMean', 'klMean'] as const) {
    const [then, now] = [recorded[name], measured[name]];
    if (Math.abs(now - then) <= figureTolerance * Math.max(Math.abs(then), 1e-3)) continue;
    throw new Failure(
      'data_loss',
      `the file's ${name} is ${now.toPrecision(3)}, and ${then.toPrecision(3)} was recorded in it: it was changed, or made of another adapter or base; export it again`,
      { reason: 'PARITY_MISMATCH' },
    );
  }
}

/**
 * Says how far an export is from what was trained: the export's own log-probabilities of the adapter's parity probes against those the trainer
 * wrote down. A PEFT folder is applied to the base the adapter was trained on, as it was loaded for training; a merged model is run as it is. A GGUF file
 * must also be as far from base and adapter as it says of itself.
 */
export async function verifyExport(
  deps: QuantizerDeps,
  request: lifecycle.VerifyExportRequest,
  run: Pick<Run, 'operation' | 'signal'>,
): Promise<lifecycle.VerifyExportResponse> {
  const { signal } = run;
  const record = await usableAdapter(deps, request.name);
  const file = /^(.+)\/([^/]+\.gguf)$/.exec(request.uri);
  const source = await openFolder(deps.store, file?.[1] ?? request.uri, signal);
  const wanted = source.files.filter(({ path }) => file === null || path === decodeURIComponent(file[2] ?? ''));
  if (file !== null && wanted.length === 0) throw notFound(request.uri);
  const found = exportOf(wanted, request.uri);
  const staging = stagingFolder(deps.config.STAGING_DIR, 'derive', [run.operation]);
  const releases: (() => void)[] = [];
  const fetch = async (digest: string) => {
    const { dir, release } = await deps.cache.materialize(await deps.store.getManifest(digest), signal);
    releases.push(release);
    return dir;
  };
  try {
    await stageFiles(source, found.files, staging, () => undefined, signal);
    const description = parseAdapterDescription(
      await readFile(join(await fetch(record.digest), adapterDescriptionFile), 'utf8'),
    );
    const { probes } = description;
    if (found.kind === 'gguf') {
      const verified = await verifyGguf({
        modelDir: await fetch(record.baseDigest),
        adapterDir: await fetch(record.digest),
        path: join(staging, found.files[0]?.path ?? ''),
        sequences: probes.map(({ tokens }) => Uint32Array.from(tokens)),
        signal,
      });
      checkRecorded(verified);
      const scoresOf = (probe: number) => Promise.resolve(verified.logprobs[probe] ?? new Float32Array());
      return { maxLogProbabilityDifference: await largestDifference(probes, scoresOf) };
    }
    const isAdapter = found.kind === 'adapter';
    const model = await loadModel({
      modelDir: isAdapter ? await fetch(record.baseDigest) : staging,
      // A 16-bit base may have been quantized for the training alone.
      quantize: isAdapter && description.base.quantization === 'nf4' ? 'nf4' : 'none',
      compute: description.engine.compute,
      signal,
    });
    try {
      const adapter = isAdapter ? await model.loadAdapter(staging) : undefined;
      const scoresOf = (probe: number) =>
        model.score({ tokens: Uint32Array.from(probes[probe]?.tokens ?? []), adapter, signal });
      return { maxLogProbabilityDifference: await largestDifference(probes, scoresOf) };
    } finally {
      await model.close();
    }
  } finally {
    for (const release of releases) release();
    await rm(staging, { recursive: true, force: true });
  }
}

/** The operation's response. */
export const packVerified = (response: lifecycle.VerifyExportResponse) => ({
  typeUrl: 'type.googleapis.com/medmesh.lifecycle.v1.VerifyExportResponse',
  bytes: lifecycle.VerifyExportResponse.encode(response).finish(),
});
