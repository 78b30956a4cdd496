import type { Command } from 'commander';
import type { CommandContext } from '../../context.ts';
import { formatBytes } from '../../output.ts';
import { createProgressBar } from '../../progress.ts';
import { engineAction } from './engine-action.ts';
import { inspectModelFolder } from './model-options.ts';
import { checkOutputFolder } from './output-path.ts';

type QuantizeCommandOptions = { model: string; out: string; doubleQuant: boolean; force: boolean };

async function quantize({ out, signal }: CommandContext, options: QuantizeCommandOptions): Promise<void> {
  const { model: modelDir, out: outDir, doubleQuant, force: replace } = options;
  const before = await inspectModelFolder(modelDir);
  await checkOutputFolder(outDir, 'config.json', { force: replace, inputs: [modelDir] });
  const { quantizeModel } = await import('@medmesh/engine');
  const bar = createProgressBar('quantize', out.json, { onlyOnTerminal: true });
  const onProgress = ({ done, total }: { done: number; total: number }) =>
    bar.update(done, total, `${formatBytes(done)} of ${formatBytes(total)}`);
  const made = await quantizeModel({ modelDir, outDir, doubleQuant, replace, onProgress, signal }).finally(() =>
    bar.stop(),
  );
  out.result(
    { out: outDir, weight_bytes: made.weightBytes, tensors: made.tensors, double_quant: doubleQuant },
    `${formatBytes(before.weightBytes)} → ${formatBytes(made.weightBytes)} in ${outDir}`,
  );
}

/** `engine quantize`: an NF4 copy of a model folder. */
export function addQuantizeCommand(group: Command, signal: AbortSignal): void {
  group
    .command('quantize')
    .description('write an NF4 copy of a 16- or 32-bit model, as bitsandbytes and transformers read it')
    .requiredOption('--model <folder>', 'Hugging Face folder: config.json and safetensors')
    .requiredOption('--out <folder>', 'new folder; embeddings, norms, biases and head keep their type')
    .option('--no-double-quant', 'keep fp32 scales (0.4 bits more for each weight)')
    .option('--force', 'replace an earlier result', false)
    .action(engineAction(signal, (context, options: QuantizeCommandOptions) => quantize(context, options)));
}
