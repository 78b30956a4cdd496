import { names } from '@medmesh/catalog';
import { mergeAdapter as merge } from '@medmesh/engine';
import { Failure, notFound } from '@medmesh/errors';
import { lifecycle, model } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import type { QuantizerDeps, Report } from './deps.ts';
import { deriveModel } from './derive-model.ts';
import { readyModel } from './read-models.ts';

/** The adapter and the base it will be merged into, checked to belong together. */
export async function checkMerge(deps: QuantizerDeps, request: model.MergeAdapterRequest): Promise<{ adapter: lifecycle.Adapter; base: model.Model }> {
  names.adapter.parse(request.adapter);
  const adapter = (await deps.catalog.adapters.get(keyOf(request.adapter)))?.value;
  if (adapter === undefined || adapter.state === lifecycle.Adapter_State.UNSPECIFIED) throw notFound(request.adapter);
  if (adapter.state === lifecycle.Adapter_State.REVOKED) throw new Failure('failed_precondition', `${adapter.name} is revoked`, { reason: 'ADAPTER_REVOKED' });
  const trainedOn = await readyModel(deps, adapter.baseModel);
  if (trainedOn.digest !== adapter.baseDigest) {
    throw new Failure('failed_precondition', `${trainedOn.name} is no longer the model that ${adapter.name} was trained on`, { reason: 'ADAPTER_BASE_MISMATCH' });
  }
  if (request.baseModel === '' || request.baseModel === trainedOn.name) return { adapter, base: trainedOn };
  const base = await readyModel(deps, request.baseModel);
  if (base.digest !== trainedOn.origin?.sourceDigest) {
    throw new Failure('failed_precondition', `${base.name} is neither the base of ${adapter.name} nor the model that base was quantized from`, { reason: 'ADAPTER_BASE_MISMATCH' });
  }
  return { adapter, base };
}

/** W + scale · B·A for every adapted matrix, into the 16-bit weights or into the dequantized 4-bit ones; which of the two is recorded. */
export async function mergeAdapter(deps: QuantizerDeps, request: model.MergeAdapterRequest, operation: string, report: Report, signal: AbortSignal): Promise<model.Model> {
  const { adapter, base } = await checkMerge(deps, request);
  const { project } = names.adapter.parse(adapter.name);
  const origin = model.ModelOrigin.fromPartial({
    sourceModel: base.name,
    sourceDigest: base.digest,
    adapter: adapter.name,
    adapterDigest: adapter.digest,
    mergedInto: base.quantization === model.Quantization.NONE ? 'base16' : 'dequantized',
  });
  return deriveModel(
    deps,
    { name: names.model.format({ project, model: request.modelId }), operation, inputs: [base.digest, adapter.digest], origin },
    ([modelDir = '', adapterDir = ''], outDir) =>
      merge({ modelDir, adapterDir, outDir, onProgress: ({ done, total }) => report('MERGE', done, total), signal }),
    report,
    signal,
  );
}
