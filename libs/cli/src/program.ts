import { resolve } from 'node:path';
import { Failure } from '@medmesh/errors';
import { Command, Option } from 'commander';
import { completionScript } from './completion.ts';
import { type Environment, environment } from './context.ts';
import { helpConfiguration } from './help.ts';

type AddCommands = (program: Command, signal: AbortSignal, defaults: Environment) => void;

/** The commands by the file that has them, in the order of --help. A file is loaded only when one of its commands is wanted. */
const groups: { names: readonly string[]; load: () => Promise<AddCommands> }[] = [
  { names: ['quickstart'], load: async () => (await import('./commands/quickstart.ts')).addQuickstartCommand },
  { names: ['up', 'down', 'status'], load: async () => (await import('./commands/mesh.ts')).addMeshCommands },
  { names: ['model'], load: async () => (await import('./commands/model.ts')).addModelCommands },
  { names: ['dataset'], load: async () => (await import('./commands/dataset.ts')).addDatasetCommands },
  { names: ['finetune'], load: async () => (await import('./commands/finetune.ts')).addFinetuneCommand },
  { names: ['jobs'], load: async () => (await import('./commands/jobs.ts')).addJobsCommands },
  { names: ['adapter'], load: async () => (await import('./commands/adapter.ts')).addAdapterCommands },
  { names: ['generate', 'chat'], load: async () => (await import('./commands/generate.ts')).addGenerateCommands },
  { names: ['tokenize', 'template'], load: async () => (await import('./commands/tokenize.ts')).addTokenizeCommands },
  { names: ['bench'], load: async () => (await import('./commands/bench.ts')).addBenchCommands },
  { names: ['engine'], load: async () => (await import('./commands/engine/engine.ts')).addEngineCommands },
  { names: ['completion'], load: async () => addCompletionCommand },
];

const tlsOptions = ['--tls-ca', '--tls-cert', '--tls-key'];

/** Options before the command that take a value of their own. */
const valued: ReadonlySet<string> = new Set(['--address', '--project', '--state', '--api-key-file', ...tlsOptions]);

/** The command that a command line names; undefined for none, as with --help. */
export function commandName(words: readonly string[]): string | undefined {
  for (let i = 0; i < words.length; i += 1) {
    const word = words[i] ?? '';
    if (valued.has(word)) i += 1;
    else if (!word.startsWith('-')) return word;
  }
  return undefined;
}

function addCompletionCommand(program: Command): void {
  program
    .command('completion <shell>')
    .description('print a completion script: eval "$(./medmesh completion bash)"')
    .action((shell: string) => {
      if (shell !== 'bash' && shell !== 'zsh')
        throw new Failure('invalid_argument', `shell is ${shell}; use bash or zsh`, { reason: 'FIELD_INVALID' });
      process.stdout.write(completionScript(program, shell));
    });
}

export type ProgramOptions = {
  env: NodeJS.ProcessEnv;
  /** Aborts on Ctrl-C. */
  signal: AbortSignal;
  /** The command that will run, so that nothing else is loaded. Default: all. */
  wanted?: string | undefined;
  /** Whether whoever runs the program tells wrong use itself, from the CommanderError. Default false: commander writes it to stderr. */
  silent?: boolean;
};

/** The command line. Nothing of it ends the process: wrong use, --help and --version throw a CommanderError. */
export async function createProgram({ env, signal, wanted, silent = false }: ProgramOptions): Promise<Command> {
  const defaults = environment(env);
  // Subcommands inherit what is set before they are added.
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
    .addOption(
      new Option('--api-key-file <file>', 'file that holds the key for a gateway that asks for one').default(
        defaults.apiKeyFile,
      ),
    )
    .addOption(
      new Option('--tls-ca <file>', 'PEM authority of the gateway; any of these three speaks TLS').default(
        defaults.tlsCa,
      ),
    )
    .addOption(
      new Option('--tls-cert <file>', 'PEM certificate to show to a gateway that asks for one').default(
        defaults.tlsCert,
      ),
    )
    .addOption(new Option('--tls-key <file>', 'its PEM key').default(defaults.tlsKey))
    .addOption(new Option('--project <project>', 'the project that names are made in').default(defaults.project))
    .addOption(
      // The processes of a mesh have a folder of their own: a relative path would mean another place to them.
      new Option('--state <folder>', 'where a mesh on this machine keeps everything')
        .default(defaults.state)
        .argParser((folder) => resolve(folder)),
    )
    .showSuggestionAfterError()
    .configureHelp(helpConfiguration)
    .configureOutput({
      outputError: (text, write) => silent || write(text.replace(/^error: /, 'medmesh: ')),
    })
    .exitOverride()
    .addHelpText(
      'after',
      '\nMEDMESH_ADDRESS, MEDMESH_API_KEY_FILE, MEDMESH_TLS_CA, MEDMESH_TLS_CERT, MEDMESH_TLS_KEY, MEDMESH_PROJECT and MEDMESH_STATE stand for options that are not given.\nExit codes: 0 done, 1 failed, 2 wrong use or refused, 3 nothing answers, 130 interrupted.',
    );
  const named = groups.filter((group) => wanted !== undefined && group.names.includes(wanted));
  // An unknown command needs all of them, for the suggestion; `completion` describes all of them.
  for (const group of named.length === 0 || wanted === 'completion' ? groups : named)
    (await group.load())(program, signal, defaults);
  return program;
}
