import { spawn } from 'node:child_process';
import { openSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import type { Command } from 'commander';
import { type CommandContext, type Environment, withContext } from '../context.ts';
import { isAlive, lastWords, signalProcess } from '../mesh/child.ts';
import { isSupervised, type MeshRecord, readMesh, startMesh, stopMesh } from '../mesh/mesh.ts';
import { meshPaths, repositoryRoot } from '../mesh/paths.ts';
import { wholeNumber } from '../option-values.ts';
import { table } from '../output.ts';

type UpOptions = { port: number; httpPort: number; otlp?: string; root: string[]; foreground: boolean };

const describeMesh = (record: MeshRecord): string =>
  [
    `gateway  ${record.gateway} (gRPC)`,
    `openai   http://${record.http}/v1`,
    ...Object.entries(record.metrics).map(([name, address]) => `${name.padEnd(8)} http://${address}/metrics`),
    `state    ${record.stateDir}`,
  ].join('\n');

/** Runs the mesh in this process until Ctrl-C or until one of its processes dies. */
async function upForeground(
  { out, global, signal }: CommandContext,
  options: UpOptions,
  defaults: Environment,
): Promise<void> {
  const mesh = await startMesh(
    {
      stateDir: global.state,
      gatewayPort: options.port,
      httpPort: options.httpPort,
      otlpEndpoint: options.otlp,
      uriRoots: options.root,
      inherited: defaults.inherited,
      onProgress: (name) => out.say(`  ${name} is ready`),
    },
    signal,
  );
  out.result(mesh.record, `${describeMesh(mesh.record)}\n\nCtrl-C stops everything.`);
  const stopped = new Promise<undefined>((resolve) =>
    signal.addEventListener('abort', () => resolve(undefined), { once: true }),
  );
  const failed = await Promise.race([mesh.failed, stopped]);
  out.say('stopping …');
  await mesh.stop();
  if (failed !== undefined && !signal.aborted) {
    throw new Failure('unavailable', `${failed.name} ended by itself: ${failed.words}`, { reason: 'SERVICE_FAILED' });
  }
}

/** Starts a process of its own that runs the mesh, and waits until it can be called. */
async function upBackground({ out, global, signal }: CommandContext, options: UpOptions): Promise<void> {
  const running = await readMesh(global.state);
  if (running !== undefined) {
    out.result(running, `already up\n${describeMesh(running)}`);
    return;
  }
  if (await isSupervised(global.state)) {
    throw new Failure(
      'failed_precondition',
      `a mesh is starting or stopping in ${global.state}; wait, or stop it by ./medmesh down`,
      {
        reason: 'MESH_RUNNING',
      },
    );
  }
  const paths = meshPaths(global.state);
  await mkdir(paths.logs, { recursive: true });
  const logPath = join(paths.logs, 'mesh.log');
  await rm(logPath, { force: true });
  const log = openSync(logPath, 'a');
  const args = [
    join(repositoryRoot, 'libs/cli/src/main.ts'),
    '--state',
    global.state,
    'up',
    '--foreground',
    '--port',
    String(options.port),
    '--http-port',
    String(options.httpPort),
  ];
  if (options.otlp !== undefined) args.push('--otlp', options.otlp);
  for (const root of options.root) args.push('--root', root);
  const child = spawn(process.execPath, args, { detached: true, stdio: ['ignore', log, log] });
  child.unref();
  let ended = false;
  child.once('exit', () => {
    ended = true;
  });
  // Who gives up waiting wants no mesh.
  signal.addEventListener('abort', () => signalProcess(child.pid ?? 0, 'SIGTERM'), { once: true });
  for (;;) {
    signal.throwIfAborted();
    const record = await readMesh(global.state);
    if (record !== undefined) {
      out.result(record, describeMesh(record));
      return;
    }
    if (ended)
      throw new Failure('unavailable', lastWords(logPath).replace(/^medmesh: /, ''), { reason: 'MESH_FAILED' });
    await sleep(50);
  }
}

async function down({ out, global }: CommandContext): Promise<void> {
  const stopped = await stopMesh(global.state);
  out.result({ stopped }, stopped === 0 ? 'nothing runs' : `stopped ${stopped} processes`);
}

async function status(context: CommandContext): Promise<void> {
  const { out, global } = context;
  const record = await readMesh(global.state);
  if (record === undefined)
    throw new Failure('unavailable', 'no mesh runs here; start one by ./medmesh up', { reason: 'MESH_NOT_RUNNING' });
  const probe = async (name: string): Promise<string> => {
    const address = record.metrics[name];
    if (address === undefined) return 'running';
    return fetch(`http://${address}/healthz`, { signal: AbortSignal.timeout(2_000) }).then(
      (response) => (response.ok ? 'ready' : 'not ready'),
      () => 'no answer',
    );
  };
  const processes = await Promise.all(
    record.processes.map(async ({ name, pid, log }) => ({
      name,
      pid,
      state: isAlive(pid) ? await probe(name) : 'gone',
      log,
    })),
  );
  const trainer = await (await context.client()).raw.trainer.getTrainerStatus({}).catch(() => undefined);
  const rows = processes.map(({ name, pid, state, log }) => [name, String(pid), state, log]);
  const doing =
    trainer === undefined || trainer.fineTuningJob === ''
      ? ''
      : `\n\ntrainer: ${trainer.fineTuningJob}, step ${trainer.step} of ${trainer.totalSteps}, ${trainer.tokensPerSecond.toFixed(0)} tok/s`;
  out.result(
    { ...record, processes, device: trainer?.device },
    `${table(['PROCESS', 'PID', 'STATE', 'LOG'], rows)}\n\ngateway: ${record.gateway}${trainer === undefined ? '' : `\ndevice:  ${trainer.device}`}${doing}`,
  );
}

/** `up`, `down`, `status`: a whole mesh on this machine. */
export function addMeshCommands(program: Command, signal: AbortSignal, defaults: Environment): void {
  program
    .command('up')
    .description('start nats-server and the six services on this machine')
    .option('--port <port>', 'port of the gateway; 0 takes a free one', wholeNumber(0, 65_535), 7400)
    .option('--http-port <port>', 'port of the OpenAI-compatible API; 0 takes a free one', wholeNumber(0, 65_535), 0)
    .option('--otlp <url>', 'OTLP/HTTP collector for traces', defaults.otlpEndpoint)
    .option('--root <folder...>', 'folders that imports and exports may touch', [repositoryRoot])
    .option('--foreground', 'stay, and stop everything on Ctrl-C', false)
    .action(
      withContext(signal, (context, options: UpOptions, _command: Command) =>
        options.foreground ? upForeground(context, options, defaults) : upBackground(context, options),
      ),
    );
  program
    .command('down')
    .description('stop the mesh that runs on this machine')
    .action(withContext(signal, (context, _options: object, _command: Command) => down(context)));
  program
    .command('status')
    .description('what runs, and what it does')
    .action(withContext(signal, (context, _options: object, _command: Command) => status(context)));
}
