import { names } from '@medmesh/catalog';
import { mergeAdapter as merge } from '@medmesh/engine';
import { Failure, notFound } from '@medmesh/errors';
import { lifecycle, model } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import type { QuantizerDeps, Run } from './deps.ts';
import { deriveModel } from './derive-model.ts';
import { readyModel } from './read-models.ts';

/** An adapter that exists and is not revoked. */
export async function usableAdapter(deps: QuantizerDeps, name: string): Promise<lifecycle.Adapter> {
  names.adapter.parse(name);
  const adapter = (await deps.catalog.adapters.get(keyOf(name)))?.value;
  // Without a state it belongs to a job that has not succeeded yet.
  if (adapter === undefined || adapter.state === lifecycle.Adapter_State.UNSPECIFIED) throw notFound(name);
  if (adapter.state === lifecycle.Adapter_State.REVOKED) {
    throw new Failure('failed_precondition', `${name} is revoked`, { reason: 'ADAPTER_REVOKED' });
  }
  return adapter;
}

/** The adapter and the base it will be merged into, checked to belong together. */
export async function checkMerge(
  deps: QuantizerDeps,
  request: model.MergeAdapterRequest,
): Promise<{ adapter: lifecycle.Adapter; base: model.Model }> {
  const adapter = await usableAdapter(deps, request.adapter);
  const mismatch = (what: string) => new Failure('failed_precondition', what, { reason: 'ADAPTER_BASE_MISMATCH' });
  const trainedOn = await readyModel(deps, adapter.baseModel);
  if (trainedOn.digest !== adapter.baseDigest)
    throw mismatch(`${trainedOn.name} is no longer the model that ${adapter.name} was trained on`);
  if (request.baseModel === '' || request.baseModel === trainedOn.name) return { adapter, base: trainedOn };
  const base = await readyModel(deps, request.baseModel);
  if (base.digest !== trainedOn.origin?.sourceDigest) {
    throw mismatch(`${base.name} is neither the base of ${adapter.name} nor the model that base was quantized from`);
  }
  return { adapter, base };
}

/** The name of the model that a merge makes: in the adapter's project. */
export const mergedName = (request: model.MergeAdapterRequest): string =>
  names.model.format({ project: names.adapter.parse(request.adapter).project, model: request.modelId });

/** W + scale · B·A for every adapted matrix, into the 16-bit weights or into the dequantized 4-bit ones; which of the two is recorded. */
export async function mergeAdapter(
  deps: QuantizerDeps,
  request: model.MergeAdapterRequest,
  run: Run,
): Promise<model.Model> {
  const { adapter, base } = await checkMerge(deps, request);
  const origin = model.ModelOrigin.fromPartial({
    sourceModel: base.name,
    sourceDigest: base.digest,
    adapter: adapter.name,
    adapterDigest: adapter.digest,
    mergedInto: base.quantization === model.Quantization.NONE ? 'base16' : 'dequantized',
  });
  return deriveModel(
    deps,
    {
      name: mergedName(request),
      inputs: [base.digest, adapter.digest],
      origin,
      async make([modelDir = '', adapterDir = ''], outDir) {
        await merge({
          modelDir,
          adapterDir,
          outDir,
          onProgress: ({ done, total }) => run.report('MERGE', done, total),
          signal: run.signal,
        });
      },
    },
    run,
  );
}
