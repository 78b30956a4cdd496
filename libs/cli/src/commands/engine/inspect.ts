import type { ModelInfo, SafetensorsInfo } from '@medmesh/engine';
import type { Command } from 'commander';
import type { CommandContext } from '../../context.ts';
import { formatBytes, table } from '../../output.ts';
import { engineAction, reading } from './engine-action.ts';
import { checkInputFile, kindOf } from './input-file.ts';
import { inspectModelFolder } from './model-options.ts';

const tensorsJson = ({ metadata, tensors }: SafetensorsInfo) => ({
  metadata,
  tensors: tensors.map((tensor) => ({
    name: tensor.name,
    dtype: tensor.dtype.toUpperCase(),
    shape: tensor.shape,
    byte_offset: tensor.byteOffset,
    byte_length: tensor.byteLength,
  })),
});

function describeTensors({ metadata, tensors }: SafetensorsInfo): string {
  const rows = tensors.map(({ name, dtype, shape, byteLength }) => [
    name,
    dtype.toUpperCase(),
    `[${shape.join(', ')}]`,
    formatBytes(byteLength),
  ]);
  const bytes = tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0);
  const notes = Object.entries(metadata).map(([key, value]) => `${key}: ${value}`);
  return [
    table(['NAME', 'DTYPE', 'SHAPE', 'SIZE'], rows),
    '',
    `${tensors.length} tensors, ${formatBytes(bytes)}`,
    ...notes,
  ].join('\n');
}

const modelJson = (info: ModelInfo) => ({
  architecture: info.architecture,
  model_type: info.modelType,
  layers: info.layers,
  hidden_size: info.hiddenSize,
  vocab_size: info.vocabSize,
  parameter_count: info.parameterCount,
  context_length: info.contextLength,
  tied: info.tied,
  stored_dtype: info.storedDtype,
  quantization: info.quantization,
  double_quant: info.doubleQuant,
  weight_bytes: info.weightBytes,
  target_modules: info.targetModules,
});

const describeModel = (info: ModelInfo): string =>
  [
    `${info.architecture} (${info.modelType}): ${(info.parameterCount / 1e6).toFixed(2)} M parameters, ${formatBytes(info.weightBytes)}`,
    `${info.layers} layers of ${info.hiddenSize}, vocabulary ${info.vocabSize}, context ${info.contextLength}, ${info.tied ? 'tied' : 'untied'} head`,
    `stored as ${info.storedDtype}${info.quantization === 'nf4' ? `, linears as NF4${info.doubleQuant ? ' with double quantization' : ''}` : ''}`,
  ].join('\n');

async function inspect({ out }: CommandContext, path: string): Promise<void> {
  if ((await kindOf(path)) === 'folder') {
    const info = await inspectModelFolder(path);
    out.result(modelJson(info), describeModel(info));
    return;
  }
  await checkInputFile(path);
  const { inspectSafetensors } = await import('@medmesh/engine');
  const info = await reading(inspectSafetensors(path));
  out.result(tensorsJson(info), describeTensors(info));
}

/** `engine inspect`: what a safetensors file or a model folder holds. */
export function addInspectCommand(group: Command, signal: AbortSignal): void {
  group
    .command('inspect <file>')
    .description('show the tensors of a safetensors file, or what a model folder holds')
    .addHelpText(
      'after',
      '\nThe reader is strict: gaps, overlaps, unknown types or a wrong length are refused. With --json:\n' +
        '  {"metadata": {…}, "tensors": [{"name", "dtype", "shape", "byte_offset", "byte_length"}, …]}, offsets from the start of the file.',
    )
    .action(engineAction(signal, (context, file: string) => inspect(context, file)));
}
