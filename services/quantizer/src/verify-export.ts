import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type AdapterDescription, adapterDescriptionFile, parseAdapterDescription } from '@medmesh/catalog';
import { type Adapter, loadModel, type Model } from '@medmesh/engine';
import { Failure, unimplemented } from '@medmesh/errors';
import { lifecycle } from '@medmesh/proto';
import type { QuantizerDeps, Run } from './deps.ts';
import { usableAdapter } from './merge-adapter.ts';
import { chooseModelFiles } from './model-files.ts';
import { openFolder } from './sources/folder.ts';
import type { SourceFile } from './sources/model-source.ts';
import { stageFiles } from './stage-files.ts';
import { stagingFolder } from './staging.ts';

/** A PEFT folder, to be applied to the adapter's base, or a model folder that stands for itself. */
type Export = { kind: 'adapter' | 'model'; files: SourceFile[] };

const peftFiles: readonly string[] = ['adapter_config.json', 'adapter_model.safetensors'];

function exportOf(files: readonly SourceFile[], uri: string): Export {
  const peft = files.filter(({ path }) => peftFiles.includes(path));
  if (peft.length === peftFiles.length) return { kind: 'adapter', files: peft };
  if (files.some(({ path }) => path.endsWith('.gguf')) && !files.some(({ path }) => path === 'config.json'))
    throw unimplemented('comparing a GGUF file with its adapter');
  return { kind: 'model', files: chooseModelFiles(files, uri) };
}

/** max |Δ log p| over all tokens of the adapter's parity probes. */
async function largestDifference(
  model: Model,
  adapter: Adapter | undefined,
  probes: AdapterDescription['probes'],
  signal: AbortSignal,
): Promise<number> {
  let largest = 0;
  for (const { tokens, logprobs } of probes) {
    const scores = await model.score({ tokens: Uint32Array.from(tokens), adapter, signal });
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

/**
 * Says how far an export is from what was trained: the export's own log-probabilities of the adapter's parity probes against those the trainer
 * wrote down. A PEFT folder is applied to the base the adapter was trained on, as it was loaded for training; a merged model is run as it is.
 */
export async function verifyExport(
  deps: QuantizerDeps,
  request: lifecycle.VerifyExportRequest,
  run: Pick<Run, 'operation' | 'signal'>,
): Promise<lifecycle.VerifyExportResponse> {
  const { signal } = run;
  const record = await usableAdapter(deps, request.name);
  const source = await openFolder(deps.store, request.uri, signal);
  const found = exportOf(source.files, request.uri);
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
      return { maxLogProbabilityDifference: await largestDifference(model, adapter, description.probes, signal) };
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
