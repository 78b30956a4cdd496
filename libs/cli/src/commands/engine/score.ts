import type { Command } from 'commander';
import type { CommandContext } from '../../context.ts';
import { createProgressBar } from '../../progress.ts';
import { engineAction } from './engine-action.ts';
import { addModelOptions, inspectModelFolder, loadModelAndAdapter, type ModelOptions } from './model-options.ts';
import { checkOutputFile } from './output-path.ts';
import { readSequences } from './sequences-file.ts';

type ScoreOptions = ModelOptions & { sequences: string; out: string; force: boolean };

async function score({ out, signal }: CommandContext, options: ScoreOptions): Promise<void> {
  const inputs = [options.sequences, options.model, ...(options.adapter === undefined ? [] : [options.adapter])];
  await checkOutputFile(options.out, { force: options.force, inputs });
  const info = await inspectModelFolder(options.model);
  const { sequences } = await readSequences(options.sequences, info.vocabSize);
  const { openSafetensors } = await import('@medmesh/engine');
  const { model, adapter } = await loadModelAndAdapter(options, info, signal);
  const bar = createProgressBar('score', out.json, { onlyOnTerminal: true });
  try {
    const shapes = sequences.map((ids, i) => ({
      name: `logits_${i}`,
      dtype: 'f32' as const,
      shape: [ids.length, info.vocabSize],
    }));
    // One sequence's logits in memory at a time: together they can be larger than memory.
    const file = await openSafetensors(options.out, shapes, { format: 'pt' });
    try {
      for (const [i, tokens] of sequences.entries()) {
        const logits = await model.logits({ tokens, adapter, signal });
        await file.append(`logits_${i}`, new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength));
        signal.throwIfAborted();
        bar.update(i + 1, sequences.length, `${i + 1} of ${sequences.length} sequences`);
      }
      await file.finish();
    } finally {
      await file.close();
    }
  } finally {
    bar.stop();
    await model.close();
  }
  const tokens = sequences.reduce((sum, ids) => sum + ids.length, 0);
  out.result(
    { out: options.out, sequences: sequences.length, tokens, vocab_size: info.vocabSize },
    `logits of ${sequences.length} sequences, ${tokens} tokens, in ${options.out}`,
  );
}

/** `engine score`: the logits of token sequences. */
export function addScoreCommand(group: Command, signal: AbortSignal): void {
  addModelOptions(
    group.command('score').description('write the logits of token sequences'),
    'PEFT adapter folder to apply; default: none',
  )
    .requiredOption('--sequences <file>', '{"sequences": [[ids…], …]}; a "loss_mask" is allowed and not used')
    .requiredOption('--out <file>', 'safetensors file: logits_0, logits_1, …, f32 [tokens, vocabulary]')
    .option('--force', 'replace the file if it exists', false)
    .action(engineAction(signal, (context, options: ScoreOptions) => score(context, options)));
}
