import type { Command } from 'commander';
import type { CommandContext } from '../../context.ts';
import { formatBytes } from '../../output.ts';
import { createProgressBar } from '../../progress.ts';
import { engineAction } from './engine-action.ts';
import { checkAdapterFolder, inspectModelFolder } from './model-options.ts';
import { checkOutputFolder } from './output-path.ts';

type ExportOptions = { model: string; adapter: string; out: string; merge: boolean; force: boolean };

async function merge({ out, signal }: CommandContext, options: ExportOptions): Promise<void> {
  const { model: modelDir, adapter: adapterDir, out: outDir, force: replace } = options;
  await inspectModelFolder(modelDir);
  await checkAdapterFolder(adapterDir);
  await checkOutputFolder(outDir, 'config.json', { force: replace, inputs: [modelDir, adapterDir] });
  const { mergeAdapter } = await import('@medmesh/engine');
  const bar = createProgressBar('merge', out.json, { onlyOnTerminal: true });
  const onProgress = ({ done, total }: { done: number; total: number }) =>
    bar.update(done, total, `${formatBytes(done)} of ${formatBytes(total)}`);
  const made = await mergeAdapter({ modelDir, adapterDir, outDir, replace, onProgress, signal }).finally(() =>
    bar.stop(),
  );
  const base = made.base === 'stored' ? 'the stored weights' : 'the dequantized NF4 weights';
  out.result(
    { out: outDir, format: 'safetensors', weight_bytes: made.weightBytes, base: made.base },
    `${formatBytes(made.weightBytes)} in ${outDir}, the adapter added to ${base}`,
  );
}

/** `engine export`: a base and an adapter as one model. */
export function addExportCommand(group: Command, signal: AbortSignal): void {
  group
    .command('export')
    .description('write a base and an adapter as one model')
    .requiredOption('--model <folder>', 'Hugging Face folder: config.json and safetensors; an NF4 base is dequantized')
    .requiredOption('--adapter <folder>', 'PEFT adapter folder')
    .requiredOption(
      '--merge',
      'a Hugging Face folder with the adapter added to the weights, in the base’s 16- or 32-bit type',
    )
    .requiredOption('--out <folder>', 'new folder')
    .option('--force', 'replace an earlier result', false)
    .action(engineAction(signal, (context, options: ExportOptions) => merge(context, options)));
}
