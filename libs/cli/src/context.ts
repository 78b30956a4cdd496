import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import type { MedmeshClient } from '@medmesh/client';
import { Failure } from '@medmesh/errors';
import type { Command } from 'commander';
import { defaultStateDir } from './mesh/paths.ts';
import { createOutput, type Output } from './output.ts';

/** Options that every command takes. */
export type GlobalOptions = {
  json: boolean;
  address?: string;
  project: string;
  state: string;
  apiKeyFile?: string;
  tlsCa?: string;
  tlsCert?: string;
  tlsKey?: string;
};

export type CommandContext = {
  global: GlobalOptions;
  out: Output;
  /** Aborts on Ctrl-C. */
  signal: AbortSignal;
  /** A client of the gateway: --address, MEDMESH_ADDRESS, or the mesh that runs in the state folder. */
  client(): Promise<MedmeshClient>;
};

/** What the processes of a mesh take over from whoever starts it: where programs and libraries are, the device to use, and how hubs are reached. */
const inheritedNames = [
  'PATH',
  'HOME',
  'LD_LIBRARY_PATH',
  'CUDA_VISIBLE_DEVICES',
  'MEDMESH_CUDA_LIBRARY_PATH',
  'MEDMESH_ENGINE_CUDA_LIBRARY',
  'ENGINE_DEVICE',
  'ENGINE_MEMORY_BUDGET',
  'HUGGING_FACE_URL',
  'HUGGING_FACE_TOKEN',
  'MODELSCOPE_URL',
  'MODELSCOPE_TOKEN',
  'HUB_URLS_ALLOWED',
] as const;

const inherit = (env: NodeJS.ProcessEnv): Record<string, string> =>
  Object.fromEntries(inheritedNames.flatMap((name) => (env[name] === undefined ? [] : [[name, env[name]]])));

/** The defaults that do not stand in the code: read once, here. */
export const environment = (env: NodeJS.ProcessEnv) => ({
  address: env['MEDMESH_ADDRESS'],
  project: env['MEDMESH_PROJECT'] ?? 'default',
  apiKeyFile: env['MEDMESH_API_KEY_FILE'],
  tlsCa: env['MEDMESH_TLS_CA'],
  tlsCert: env['MEDMESH_TLS_CERT'],
  tlsKey: env['MEDMESH_TLS_KEY'],
  state: resolve(env['MEDMESH_STATE'] ?? defaultStateDir),
  otlpEndpoint: env['OTEL_EXPORTER_OTLP_ENDPOINT'],
  inherited: inherit(env),
});

export type Environment = ReturnType<typeof environment>;

/** Runs a command's action with its context; the client is closed whatever happens. */
export function withContext<A extends unknown[]>(
  signal: AbortSignal,
  action: (context: CommandContext, ...rest: A) => Promise<void>,
): (...args: A) => Promise<void> {
  return async (...args) => {
    // commander passes the Command last.
    const command = args.at(-1) as Command;
    const global = command.optsWithGlobals<GlobalOptions>();
    let client: MedmeshClient | undefined;
    const context: CommandContext = {
      global,
      out: createOutput(global.json),
      signal,
      async client() {
        const { connect } = await import('@medmesh/client');
        client ??= connect({
          address: await resolveAddress(global),
          project: global.project,
          apiKey: global.apiKeyFile === undefined ? undefined : (await readFile(global.apiKeyFile, 'utf8')).trim(),
          tls: tlsOf(global),
        });
        return client;
      },
    };
    try {
      await action(context, ...args);
    } catch (error) {
      // Whatever the work says when it is interrupted, the interruption is what happened.
      throw signal.aborted ? signal.reason : error;
    } finally {
      client?.close();
    }
  };
}

/** TLS as soon as any of its files is named. Without an authority the system's are trusted. */
function tlsOf({ tlsCa: caFile, tlsCert: certFile, tlsKey: keyFile }: GlobalOptions) {
  if (caFile === undefined && certFile === undefined && keyFile === undefined) return undefined;
  if ((certFile === undefined) !== (keyFile === undefined))
    throw new Failure(
      'invalid_argument',
      `a client certificate needs --tls-cert and --tls-key; ${certFile === undefined ? '--tls-cert' : '--tls-key'} is missing`,
      { reason: 'TLS_CONFIG_INVALID' },
    );
  return { caFile, certFile, keyFile };
}

async function resolveAddress(global: GlobalOptions): Promise<string> {
  if (global.address !== undefined) return global.address;
  const { readMesh } = await import('./mesh/mesh.ts');
  const mesh = await readMesh(global.state);
  if (mesh !== undefined) return mesh.gateway;
  throw new Failure(
    'unavailable',
    'no mesh runs here; start one by ./medmesh up, or name a gateway by --address host:port',
    { reason: 'MESH_NOT_RUNNING' },
  );
}
