import type { ExportedGguf, GgufType, Progress } from '@medmesh/engine';
import { type Command, Option } from 'commander';
import type { CommandContext } from '../../context.ts';
import { formatBytes } from '../../output.ts';
import { createProgressBar } from '../../progress.ts';
import { engineAction } from './engine-action.ts';
import { refusal } from './input-file.ts';
import { checkAdapterFolder, inspectModelFolder } from './model-options.ts';
import { checkOutputFile, checkOutputFolder } from './output-path.ts';

type ExportOptions = {
  model: string;
  adapter?: string;
  merge?: boolean;
  gguf?: GgufType;
  name?: string;
  out: string;
  force: boolean;
};

const ggufTypes: readonly GgufType[] = ['f32', 'f16', 'q8_0', 'q4_0', 'q4_k_m'];

const describeBase = (base: 'stored' | 'nf4_dequantized') =>
  base === 'stored' ? 'the stored weights' : 'the dequantized NF4 weights';

/** Runs long work with a bar that follows its bytes. */
async function withBar<T>(
  { out }: CommandContext,
  label: string,
  work: (onProgress: (progress: Progress) => void) => Promise<T>,
): Promise<T> {
  const bar = createProgressBar(label, out.json, { onlyOnTerminal: true });
  try {
    return await work(({ done, total }) => bar.update(done, total, `${formatBytes(done)} of ${formatBytes(total)}`));
  } finally {
    bar.stop();
  }
}

async function merge(context: CommandContext, options: ExportOptions, adapterDir: string): Promise<void> {
  const { model: modelDir, out: outDir, force: replace } = options;
  await checkOutputFolder(outDir, 'config.json', { force: replace, inputs: [modelDir, adapterDir] });
  const { mergeAdapter } = await import('@medmesh/engine');
  const made = await withBar(context, 'merge', (onProgress) =>
    mergeAdapter({ modelDir, adapterDir, outDir, replace, onProgress, signal: context.signal }),
  );
  context.out.result(
    { out: outDir, format: 'safetensors', weight_bytes: made.weightBytes, base: made.base },
    `${formatBytes(made.weightBytes)} in ${outDir}, the adapter added to ${describeBase(made.base)}`,
  );
}

const ggufJson = (outPath: string, type: GgufType, made: ExportedGguf) => ({
  out: outPath,
  format: 'gguf',
  type,
  file_bytes: made.fileBytes,
  tensors: made.tensors,
  architecture: made.architecture,
  tokenizer: made.tokenizer,
  context_length: made.contextLength,
  base: made.base,
  parity: {
    weight_mean: made.parity.weightMean,
    weight_max: made.parity.weightMax,
    probe_tokens: made.parity.probeTokens,
    logprob_mean: made.parity.logprobMean,
    logprob_max: made.parity.logprobMax,
    kl_mean: made.parity.klMean,
    top1_agreement: made.parity.top1Agreement,
  },
});

const describeGguf = (outPath: string, type: GgufType, { parity, ...made }: ExportedGguf): string =>
  [
    `${formatBytes(made.fileBytes)} in ${outPath}: ${made.architecture}, ${type}, ${made.tensors} tensors, of ${describeBase(made.base)}`,
    made.tokenizer === 'no_vocab' ? 'the folder has no tokenizer: the file takes token ids only' : '',
    `parity over ${parity.probeTokens} tokens: KL ${parity.klMean.toExponential(1)} nats, log-probabilities ${parity.logprobMean.toExponential(1)} apart on average, ` +
      `same first choice at ${(100 * parity.top1Agreement).toFixed(1)} %`,
  ]
    .filter((line) => line !== '')
    .join('\n');

async function writeGguf(context: CommandContext, options: ExportOptions, type: GgufType): Promise<void> {
  const { model: modelDir, adapter: adapterDir, out: outPath, name, force: replace } = options;
  const inputs = [modelDir, ...(adapterDir === undefined ? [] : [adapterDir])];
  await checkOutputFile(outPath, { force: replace, inputs });
  const { exportGguf } = await import('@medmesh/engine');
  // An empty file is not in the way here, but to the engine it is a file.
  const made = await withBar(context, 'export', (onProgress) =>
    exportGguf({ modelDir, adapterDir, outPath, type, name, replace: true, onProgress, signal: context.signal }),
  );
  context.out.result(ggufJson(outPath, type, made), describeGguf(outPath, type, made));
}

async function exportModel(context: CommandContext, options: ExportOptions): Promise<void> {
  if (options.merge !== true && options.gguf === undefined)
    throw refusal('name what to write: --merge or --gguf TYPE', 'USAGE');
  await inspectModelFolder(options.model);
  if (options.adapter !== undefined) await checkAdapterFolder(options.adapter);
  if (options.gguf !== undefined) return writeGguf(context, options, options.gguf);
  if (options.adapter === undefined)
    throw refusal('--merge adds an adapter to the weights; name it by --adapter', 'USAGE');
  return merge(context, options, options.adapter);
}

/** `engine export`: a base, and an adapter, as one model for other programs. */
export function addExportCommand(group: Command, signal: AbortSignal): void {
  group
    .command('export')
    .description('write a model, with an adapter added to its weights, for other programs')
    .requiredOption('--model <folder>', 'Hugging Face folder: config.json and safetensors; an NF4 base is dequantized')
    .option('--adapter <folder>', 'PEFT adapter folder; --merge needs one')
    .option('--merge', 'write a Hugging Face folder in the base’s 16- or 32-bit type')
    .addOption(new Option('--gguf <type>', 'write a GGUF file for llama.cpp').choices(ggufTypes).conflicts('merge'))
    .addOption(
      new Option('--name <name>', 'the model’s name in the GGUF file (default: the folder’s)').conflicts('merge'),
    )
    .requiredOption('--out <path>', 'new folder, or new file with --gguf')
    .option('--force', 'replace an earlier result', false)
    .addHelpText(
      'after',
      '\nA GGUF file carries how far it is from its source, and the command prints it: the file’s own numbers, run on a fixed token sequence,\n' +
        'against the model’s. With --json: {"out", "format", …, "parity": {"kl_mean", "logprob_mean", "logprob_max", "top1_agreement", …}}.',
    )
    .action(engineAction(signal, (context, options: ExportOptions) => exportModel(context, options)));
}
