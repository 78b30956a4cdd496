import { Failure } from '@medmesh/errors';
import { CommanderError } from 'commander';
import { reportError, usageFailure } from './output.ts';
import { commandName, createProgram } from './program.ts';

const interrupt = new AbortController();
const onSignal = () => {
  // The first asks, the second insists.
  if (interrupt.signal.aborted) process.exit(130);
  interrupt.abort(new Failure('cancelled', 'interrupted', { reason: 'INTERRUPTED' }));
};
process.on('SIGINT', onSignal);
process.on('SIGTERM', onSignal);

// As with `| head`: nobody reads the rest. The work is given up in order, and nothing more is said.
let isOutputClosed = false;
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  isOutputClosed = true;
  interrupt.abort(new Failure('cancelled', 'nobody reads the output', { reason: 'OUTPUT_CLOSED' }));
});

const words = process.argv.slice(2);
const json = words.includes('--json');
const wanted = commandName(words);

async function runProgram(): Promise<void> {
  const program = await createProgram({ env: process.env, signal: interrupt.signal, wanted, silent: json });
  await program.parseAsync();
}

/** Every call of one command is one trace. */
async function runTraced(): Promise<void> {
  const { flushTelemetry, withSpan } = await import('@medmesh/telemetry');
  try {
    await withSpan('medmesh', {}, runProgram);
  } finally {
    await flushTelemetry();
  }
}

try {
  // These call nobody.
  const isLocal = wanted === undefined || ['engine', 'completion', 'help'].includes(wanted);
  await (isLocal ? runProgram() : runTraced());
} catch (error) {
  // What a process ended by SIGPIPE ends with.
  if (isOutputClosed) process.exitCode = 141;
  else if (!(error instanceof CommanderError)) process.exitCode = reportError(error, json);
  // --help and --version end this way too.
  else if (error.exitCode !== 0) process.exitCode = json ? reportError(usageFailure(error), json) : 2;
}
