import { Failure } from '@medmesh/errors';
import { flushTelemetry, withSpan } from '@medmesh/telemetry';
import { CommanderError } from 'commander';
import { reportError } from './output.ts';
import { createProgram } from './program.ts';

const interrupt = new AbortController();
const onSignal = () => {
  // The first asks, the second insists.
  if (interrupt.signal.aborted) process.exit(130);
  interrupt.abort(new Failure('cancelled', 'interrupted', { reason: 'INTERRUPTED' }));
};
process.on('SIGINT', onSignal);
process.on('SIGTERM', onSignal);

const json = process.argv.includes('--json');
const program = createProgram(process.env, interrupt.signal);
program.exitOverride();
for (const command of program.commands) {
  command.exitOverride();
  for (const sub of command.commands) sub.exitOverride();
}
try {
  // Every call of one command is one trace.
  await withSpan('medmesh', {}, () => program.parseAsync());
} catch (error) {
  // commander has said what was wrong; --help and --version end this way too.
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2;
  else process.exitCode = reportError(error, json);
}
await flushTelemetry();
