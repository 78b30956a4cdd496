import { Failure } from '@medmesh/errors';
import { Command, Option } from 'commander';
import { addAdapterCommands } from './commands/adapter.ts';
import { addDatasetCommands } from './commands/dataset.ts';
import { addFinetuneCommand } from './commands/finetune.ts';
import { addGenerateCommands } from './commands/generate.ts';
import { addJobsCommands } from './commands/jobs.ts';
import { addMeshCommands } from './commands/mesh.ts';
import { addModelCommands } from './commands/model.ts';
import { addQuickstartCommand } from './commands/quickstart.ts';
import { addTokenizeCommands } from './commands/tokenize.ts';
import { completionScript } from './completion.ts';
import { environment } from './context.ts';

/** The whole command line. `signal` aborts on Ctrl-C. */
export function createProgram(env: NodeJS.ProcessEnv, signal: AbortSignal): Command {
  const defaults = environment(env);
  const program = new Command('medmesh')
    .description('Fine-tunes language models on a hospital’s own questions and answers, and serves the result.')
    .version('0.1.0')
    .addOption(new Option('--json', 'one line of JSON instead of text').default(false))
    .addOption(
      new Option(
        '--address <host:port>',
        'the gateway; default: MEDMESH_ADDRESS, else the mesh that runs here',
      ).default(defaults.address),
    )
    .addOption(new Option('--project <project>', 'the project that names are made in').default(defaults.project))
    .addOption(new Option('--state <folder>', 'where a mesh on this machine keeps everything').default(defaults.state))
    .showSuggestionAfterError()
    .configureHelp({ showGlobalOptions: true })
    .addHelpText(
      'after',
      '\nExit codes: 0 done, 1 failed, 2 wrong use or refused, 3 nothing answers, 130 interrupted.',
    );
  addQuickstartCommand(program, signal, defaults);
  addMeshCommands(program, signal, defaults);
  addModelCommands(program, signal);
  addDatasetCommands(program, signal);
  addFinetuneCommand(program, signal);
  addJobsCommands(program, signal);
  addAdapterCommands(program, signal);
  addGenerateCommands(program, signal);
  addTokenizeCommands(program, signal);
  program
    .command('completion <shell>')
    .description('print a completion script: eval "$(./medmesh completion bash)"')
    .action((shell: string) => {
      if (shell !== 'bash' && shell !== 'zsh')
        throw new Failure('invalid_argument', `shell is ${shell}; use bash or zsh`, { reason: 'FIELD_INVALID' });
      process.stdout.write(completionScript(program, shell));
    });
  for (const command of program.commands) command.copyInheritedSettings(program);
  return program;
}
