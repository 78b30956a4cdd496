import type { Adapter, Dtype, Model, ModelInfo } from '@medmesh/engine';
import { type Command, Option } from 'commander';
import { wholeNumber } from '../../option-values.ts';
import { reading } from './engine-action.ts';
import { checkInputFolder } from './input-file.ts';

/** How a command loads its model. */
export type ModelOptions = {
  model: string;
  adapter?: string;
  quantize: 'none' | 'nf4';
  dtype?: Dtype;
  threads: number;
  device: string;
};

/** The options of a command that loads a model. */
export const addModelOptions = (command: Command, adapterHelp: string): Command =>
  command
    .requiredOption('--model <folder>', 'Hugging Face folder: config.json and safetensors')
    .option('--adapter <folder>', adapterHelp)
    .addOption(
      new Option('--quantize <kind>', 'nf4: quantize the linears of the blocks while loading (double quantization)')
        .choices(['none', 'nf4'])
        .default('none'),
    )
    .addOption(
      new Option(
        '--dtype <dtype>',
        'operands of matrix products; the rest is fp32 (default: f32 for a model stored in f32, else bf16)',
      ).choices(['f32', 'bf16']),
    )
    .option('--device <device>', 'cpu, cuda or cuda:1; auto: the first GPU where it can do this, else the CPU', 'auto')
    .option('--threads <n>', '0: as many as this process may use', wholeNumber(0, 1024), 0);

/** What the model folder holds, judged without loading it. */
export async function inspectModelFolder(dir: string): Promise<ModelInfo> {
  await checkInputFolder(dir, 'config.json', 'a Hugging Face model folder (config.json and safetensors)');
  const { inspectModel } = await import('@medmesh/engine');
  return reading(inspectModel(dir));
}

/** Loads what the options name. Closing the model closes the adapter. */
export async function loadModelAndAdapter(
  options: ModelOptions,
  info: ModelInfo,
  signal: AbortSignal,
): Promise<{ model: Model; adapter: Adapter | undefined }> {
  const { loadModel } = await import('@medmesh/engine');
  if (options.adapter !== undefined) await checkAdapterFolder(options.adapter);
  const { model: modelDir, quantize, threads, device } = options;
  const compute = options.dtype ?? (info.storedDtype === 'f32' ? 'f32' : 'bf16');
  const model = await reading(loadModel({ modelDir, quantize, compute, threads, device, signal }));
  try {
    const adapter = options.adapter === undefined ? undefined : await reading(model.loadAdapter(options.adapter));
    return { model, adapter };
  } catch (error) {
    await model.close();
    throw error;
  }
}

export const checkAdapterFolder = (dir: string): Promise<void> =>
  checkInputFolder(
    dir,
    'adapter_config.json',
    'a PEFT adapter folder (adapter_config.json and adapter_model.safetensors)',
  );
