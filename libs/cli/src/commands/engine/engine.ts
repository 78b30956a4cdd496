import type { Command } from 'commander';
import { helpConfiguration } from '../../help.ts';
import { addBenchCommand } from './bench.ts';
import { addExportCommand } from './export.ts';
import { addGenerateCommand } from './generate.ts';
import { addInspectCommand } from './inspect.ts';
import { addQuantizeCommand } from './quantize.ts';
import { addScoreCommand } from './score.ts';
import { addTrainCommand } from './train.ts';

/** `engine …`: what the engine does, on files of this machine, without a mesh. */
export function addEngineCommands(program: Command, signal: AbortSignal): void {
  const group = program
    .command('engine')
    .description('score, train, generate, quantize, export, measure on files of this machine; no mesh needed')
    // Of the options that every command takes, only --json means something here.
    .configureHelp({
      ...helpConfiguration,
      visibleGlobalOptions: (command) => {
        const root = command.parent?.parent ?? command.parent;
        return root?.options.filter((option) => option.long === '--json') ?? [];
      },
    })
    .addHelpText(
      'after',
      '\nModels are Hugging Face folders, adapters PEFT folders, tensors safetensors files. Results go to stdout or to --out, complete or not at all.\n' +
        'Exit codes: 0 done, 1 failed, 2 wrong use or refused input, 130 interrupted.',
    );
  addInspectCommand(group, signal);
  addScoreCommand(group, signal);
  addTrainCommand(group, signal);
  addGenerateCommand(group, signal);
  addQuantizeCommand(group, signal);
  addExportCommand(group, signal);
  addBenchCommand(group, signal);
}
