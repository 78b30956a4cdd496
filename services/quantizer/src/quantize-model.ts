import { names } from '@medmesh/catalog';
import { quantizeModel as quantize } from '@medmesh/engine';
import { Failure, invalidField } from '@medmesh/errors';
import { model } from '@medmesh/proto';
import type { QuantizerDeps, Run } from './deps.ts';
import { deriveModel } from './derive-model.ts';
import { readyModel } from './read-models.ts';

/** The source of a quantization, checked. */
export async function checkQuantize(deps: QuantizerDeps, request: model.QuantizeModelRequest): Promise<model.Model> {
  if (request.quantization === model.Quantization.NONE)
    throw invalidField('quantization', 'is NONE; use NF4_DOUBLE_QUANT or NF4');
  const source = await readyModel(deps, request.sourceModel);
  if (source.quantization !== model.Quantization.NONE) {
    throw new Failure('failed_precondition', `${source.name} is quantized already; name the 16-bit model`, {
      reason: 'MODEL_QUANTIZED',
    });
  }
  return source;
}

/** The name of the model that a quantization makes. */
export const quantizedName = (request: model.QuantizeModelRequest): string =>
  names.model.format({ project: names.model.parse(request.sourceModel).project, model: request.modelId });

/** Makes a 4-bit model, tensor by tensor. Linear layers of the blocks are quantized; embeddings, norms and head stay as they are. */
export async function quantizeModel(
  deps: QuantizerDeps,
  request: model.QuantizeModelRequest,
  run: Run,
): Promise<model.Model> {
  const source = await checkQuantize(deps, request);
  return deriveModel(
    deps,
    {
      name: quantizedName(request),
      inputs: [source.digest],
      origin: model.ModelOrigin.fromPartial({ sourceModel: source.name, sourceDigest: source.digest }),
      async make([modelDir = ''], outDir) {
        await quantize({
          modelDir,
          outDir,
          doubleQuant: request.quantization !== model.Quantization.NF4,
          onProgress: ({ done, total }) => run.report('QUANTIZE', done, total),
          signal: run.signal,
        });
      },
    },
    run,
  );
}
