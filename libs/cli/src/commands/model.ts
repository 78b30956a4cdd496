import { resolve } from 'node:path';
import { Failure } from '@medmesh/errors';
import { model } from '@medmesh/proto';
import { type Command, Option } from 'commander';
import { type CommandContext, withContext } from '../context.ts';
import { formatBytes, table } from '../output.ts';
import { createProgressBar } from '../progress.ts';
import { toUri } from '../source-uri.ts';

const quantizationName = (value: model.Quantization) =>
  model.quantizationToJSON(value).replace('QUANTIZATION_', '').toLowerCase().replaceAll('_', '-');

const describeModel = (m: model.Model): string =>
  `${m.name}: ${m.modelType}, ${(m.parameterCount / 1e6).toFixed(1)} M parameters, ${formatBytes(m.weightBytes)}, ${quantizationName(m.quantization)}, ${m.digest}`;

/** Runs a long operation with a bar that follows its metadata. */
async function withBar<T>(
  context: CommandContext,
  label: string,
  run: (onProgress: (metadata: model.ModelOperationMetadata) => void) => Promise<T>,
): Promise<T> {
  const bar = createProgressBar(label, context.out.json);
  try {
    return await run(({ phase, doneBytes, totalBytes }) =>
      bar.update(
        doneBytes,
        totalBytes,
        `${phase.toLowerCase()} ${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`,
      ),
    );
  } finally {
    bar.stop();
  }
}

const exportFormats = {
  'hugging-face': model.ExportFormat.HUGGING_FACE,
  'gguf-f16': model.ExportFormat.GGUF_F16,
  'gguf-q8_0': model.ExportFormat.GGUF_Q8_0,
  'gguf-q4_0': model.ExportFormat.GGUF_Q4_0,
  'gguf-q4_k_m': model.ExportFormat.GGUF_Q4_K_M,
};
type ExportOptions = { format: keyof typeof exportFormats; adapter: string };

async function downloadFolder(context: CommandContext, id: string, folder: string): Promise<void> {
  const client = await context.client();
  const files = await client.models.download(id, folder, (file) =>
    context.out.say(`  ${file.path} ${formatBytes(file.sizeBytes)}`),
  );
  context.out.result({ folder, files }, `${files.length} files in ${folder}`);
}

/** The server makes the file, and writes it: a folder on this machine must be one that the server may use. */
async function exportGguf(
  context: CommandContext,
  o: { id: string; folder: string; format: model.ExportFormat; adapter: string },
  signal: AbortSignal,
): Promise<void> {
  const client = await context.client();
  const adapter = o.adapter === '' ? '' : client.adapters.name(o.adapter);
  const request = { name: o.id, destinationUri: toUri(o.folder), format: o.format, adapter };
  const made = await withBar(context, 'export', (onProgress) => client.models.export(request, { onProgress, signal }));
  const { files, parity } = made;
  const nats = (value = 0) => value.toPrecision(2);
  context.out.result(
    model.ExportModelResponse.toJSON(made),
    `${files.map((file) => `${made.destinationUri}/${file.path} ${formatBytes(file.sizeBytes)}`).join('\n')}
differs from its source by ${nats(parity?.logprobMean)} nats a token (KL ${nats(parity?.klMean)}), same first choice in ${((parity?.top1Agreement ?? 0) * 100).toFixed(0)} %`,
  );
}

/** `model import|quantize|merge|list|get|export|delete`. */
export function addModelCommands(program: Command, signal: AbortSignal): void {
  const group = program.command('model').description('base models');
  group
    .command('import <source>')
    .description('import a folder, s3://bucket/prefix, hf://owner/name or modelscope://owner/name')
    .requiredOption('--id <id>', 'id of the new model')
    .option('--revision <commit>', 'commit, branch or tag of a hub', '')
    .option('--hub-url <url>', 'another hub address', '')
    .action(
      withContext(
        signal,
        async (
          context,
          source: string,
          options: { id: string; revision: string; hubUrl: string },
          _command: Command,
        ) => {
          const client = await context.client();
          const imported = await withBar(context, 'import', (onProgress) =>
            client.models.import(
              { modelId: options.id, uri: toUri(source), revision: options.revision, hubUrl: options.hubUrl },
              { onProgress, signal },
            ),
          );
          context.out.result(model.Model.toJSON(imported), describeModel(imported));
        },
      ),
    );
  group
    .command('quantize <model>')
    .description('make a 4-bit model (NF4 with double quantization)')
    .requiredOption('--id <id>', 'id of the new model')
    .option('--no-double-quant', 'keep fp32 absmax')
    .action(
      withContext(
        signal,
        async (context, source: string, options: { id: string; doubleQuant: boolean }, _command: Command) => {
          const client = await context.client();
          const quantization = options.doubleQuant ? model.Quantization.NF4_DOUBLE_QUANT : model.Quantization.NF4;
          const made = await withBar(context, 'quantize', (onProgress) =>
            client.models.quantize({ sourceModel: source, modelId: options.id, quantization }, { onProgress, signal }),
          );
          context.out.result(model.Model.toJSON(made), describeModel(made));
        },
      ),
    );
  group
    .command('merge <adapter>')
    .description('make a 16-bit model of a base and an adapter')
    .requiredOption('--id <id>', 'id of the new model')
    .option('--base <model>', 'merge into this model instead of the adapter’s base', '')
    .action(
      withContext(
        signal,
        async (context, adapter: string, options: { id: string; base: string }, _command: Command) => {
          const client = await context.client();
          const baseModel = options.base === '' ? '' : client.models.name(options.base);
          const made = await withBar(context, 'merge', (onProgress) =>
            client.models.merge(
              { adapter: client.adapters.name(adapter), modelId: options.id, baseModel },
              { onProgress, signal },
            ),
          );
          context.out.result(model.Model.toJSON(made), describeModel(made));
        },
      ),
    );
  group
    .command('list')
    .description('list models')
    .action(
      withContext(signal, async (context, _options: object, _command: Command) => {
        const client = await context.client();
        const all = await Array.fromAsync(client.models.list());
        const rows = all.map((m) => [
          m.name.split('/').at(-1) ?? '',
          m.modelType,
          `${(m.parameterCount / 1e6).toFixed(1)} M`,
          quantizationName(m.quantization),
          formatBytes(m.weightBytes),
          model.model_StateToJSON(m.state).replace('STATE_', ''),
        ]);
        context.out.result(
          all.map((m) => model.Model.toJSON(m)),
          table(['ID', 'TYPE', 'PARAMETERS', 'STORED', 'SIZE', 'STATE'], rows),
        );
      }),
    );
  group
    .command('get <model>')
    .description('show one model')
    .action(
      withContext(signal, async (context, id: string, _options: object, _command: Command) => {
        const client = await context.client();
        const found = await client.models.get(id);
        context.out.result(model.Model.toJSON(found), describeModel(found));
      }),
    );
  group
    .command('export <model> <folder>')
    .description('download a model as a Hugging Face folder, or make a GGUF file of it for llama.cpp')
    .addOption(
      new Option('--format <format>', 'what to write').choices(Object.keys(exportFormats)).default('hugging-face'),
    )
    .option('--adapter <adapter>', 'add this adapter first (GGUF only)', '')
    .action(
      withContext(signal, async (context, id: string, folder: string, options: ExportOptions, _command: Command) => {
        const format = exportFormats[options.format];
        if (format === model.ExportFormat.HUGGING_FACE) {
          if (options.adapter !== '') {
            throw new Failure('invalid_argument', '--adapter is for GGUF; model merge makes a folder with its adapter');
          }
          return downloadFolder(context, id, resolve(folder));
        }
        return exportGguf(context, { id, folder, format, adapter: options.adapter }, signal);
      }),
    );
  group
    .command('delete <model>')
    .description('delete a model’s record')
    .option('--yes', 'do not ask', false)
    .action(
      withContext(signal, async (context, id: string, options: { yes: boolean }, _command: Command) => {
        if (!options.yes)
          throw new Failure('invalid_argument', `add --yes to delete ${id}`, { reason: 'CONFIRMATION_MISSING' });
        const client = await context.client();
        await client.models.delete(id);
        context.out.result({ deleted: client.models.name(id) }, `deleted ${client.models.name(id)}`);
      }),
    );
}
