import { names } from '@medmesh/catalog';
import { quantizeModel as quantize } from '@medmesh/engine';
import { Failure, invalidField } from '@medmesh/errors';
import { model } from '@medmesh/proto';
import type { QuantizerDeps, Report } from './deps.ts';
import { deriveModel } from './derive-model.ts';
import { readyModel } from './read-models.ts';

/** The source of a quantization, checked. */
export async function checkQuantize(deps: QuantizerDeps, request: model.QuantizeModelRequest): Promise<model.Model> {
  if (request.quantization === model.Quantization.NONE) throw invalidField('quantization', 'is NONE; use NF4_DOUBLE_QUANT or NF4');
  const source = await readyModel(deps, request.sourceModel);
  if (source.quantization !== model.Quantization.NONE) {
    throw new Failure('failed_precondition', `${source.name} is quantized already; name the 16-bit model`, { reason: 'MODEL_QUANTIZED' });
  }
  return source;
}

/** Makes a 4-bit model, tensor by tensor. Linear layers of the blocks are quantized; embeddings, norms and head stay as they are. */
export async function quantizeModel(deps: QuantizerDeps, request: model.QuantizeModelRequest, operation: string, report: Report, signal: AbortSignal): Promise<model.Model> {
  const source = await checkQuantize(deps, request);
  const { project } = names.model.parse(source.name);
  const origin = model.ModelOrigin.fromPartial({ sourceModel: source.name, sourceDigest: source.digest });
  return deriveModel(
    deps,
    { name: names.model.format({ project, model: request.modelId }), operation, inputs: [source.digest], origin },
    ([modelDir = ''], outDir) =>
      quantize({
        modelDir,
        outDir,
        doubleQuant: request.quantization !== model.Quantization.NF4,
        onProgress: ({ done, total }) => report('QUANTIZE', done, total),
        signal,
      }),
    report,
    signal,
  );
}
