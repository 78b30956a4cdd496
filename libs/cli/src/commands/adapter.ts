import { resolve } from 'node:path';
import { lifecycle } from '@medmesh/proto';
import type { Command } from 'commander';
import { withContext } from '../context.ts';
import { table } from '../output.ts';
import { toUri } from '../source-uri.ts';

const stateName = (adapter: lifecycle.Adapter) => lifecycle.adapter_StateToJSON(adapter.state).replace('STATE_', '');

const deploymentState = (d: lifecycle.AdapterDeployment) =>
  lifecycle.adapterDeployment_StateToJSON(d.state).replace('STATE_', '').toLowerCase().replaceAll('_', ' ');

function describeDeployment(servers: readonly lifecycle.AdapterDeployment[]): string {
  const rows = servers.map((d) => [
    d.server,
    deploymentState(d),
    d.parityTokenCount === 0
      ? '–'
      : `${d.parityMeanDifference.toPrecision(2)} / ${d.parityMaxDifference.toPrecision(2)}`,
    d.error?.message ?? '',
  ]);
  return table(['SERVER', 'STATE', 'PARITY MEAN / MAX', ''], rows);
}

/** `adapter list|get|deploy|export|verify|revoke|lineage`. */
export function addAdapterCommands(program: Command, signal: AbortSignal): void {
  const group = program.command('adapter').description('trained adapters');
  group
    .command('list')
    .description('list adapters')
    .action(
      withContext(signal, async (context, _options: object, _command: Command) => {
        const client = await context.client();
        const all = await Array.fromAsync(client.adapters.list());
        const rows = all.map((a) => [
          a.name.split('/').at(-1) ?? '',
          stateName(a),
          String(a.rank),
          a.baseModel.split('/').at(-1) ?? '',
          a.finalLoss.toFixed(4),
          a.digest,
        ]);
        context.out.result(
          all.map((a) => lifecycle.Adapter.toJSON(a)),
          table(['ID', 'STATE', 'RANK', 'BASE', 'LOSS', 'DIGEST'], rows),
        );
      }),
    );
  group
    .command('get <adapter>')
    .description('show an adapter')
    .action(
      withContext(signal, async (context, id: string, _options: object, _command: Command) => {
        const client = await context.client();
        const adapter = await client.adapters.get(id);
        context.out.result(
          lifecycle.Adapter.toJSON(adapter),
          `${adapter.name}: ${stateName(adapter)}, rank ${adapter.rank}, base ${adapter.baseModel}, ${adapter.digest}`,
        );
      }),
    );
  group
    .command('deploy <adapter>')
    .description('load an adapter into every inference server that holds its base, and keep it there')
    .action(
      withContext(signal, async (context, id: string, _options: object, _command: Command) => {
        const client = await context.client();
        let servers: lifecycle.AdapterDeployment[] = [];
        try {
          await client.adapters.deploy(id, {
            signal,
            onProgress: (metadata) => {
              servers = metadata.servers;
            },
          });
        } catch (error) {
          if (servers.length > 0) context.out.say(describeDeployment(servers));
          throw error;
        }
        context.out.result(
          { adapter: client.adapters.name(id), servers: servers.map((d) => lifecycle.AdapterDeployment.toJSON(d)) },
          describeDeployment(servers),
        );
      }),
    );
  group
    .command('export <adapter> <folder>')
    .description('download an adapter as a PEFT folder')
    .action(
      withContext(signal, async (context, id: string, folder: string, _options: object, _command: Command) => {
        const client = await context.client();
        const files = await client.adapters.download(id, resolve(folder));
        context.out.result({ folder: resolve(folder), files }, `${files.length} files in ${resolve(folder)}`);
      }),
    );
  group
    .command('verify <adapter> <export>')
    .description(
      'compare an export (a PEFT folder, a merged model, a GGUF file) with what was trained, by the parity probes',
    )
    .action(
      withContext(signal, async (context, id: string, exported: string, _options: object, _command: Command) => {
        const client = await context.client();
        const uri = toUri(exported);
        const difference = await client.adapters.verifyExport(id, uri, { signal });
        context.out.result(
          { adapter: client.adapters.name(id), uri, maxLogProbabilityDifference: difference },
          `log-probabilities of the parity probes differ by at most ${difference.toPrecision(3)}`,
        );
      }),
    );
  group
    .command('revoke <adapter>')
    .description('forbid serving an adapter, for good')
    .action(
      withContext(signal, async (context, id: string, _options: object, _command: Command) => {
        const client = await context.client();
        const adapter = await client.adapters.revoke(id);
        context.out.result(lifecycle.Adapter.toJSON(adapter), `${adapter.name} is revoked`);
      }),
    );
  group
    .command('lineage <adapter>')
    .description('what an adapter was made of')
    .action(
      withContext(signal, async (context, id: string, _options: object, _command: Command) => {
        const client = await context.client();
        const lineage = await client.adapters.lineage(id);
        const lines = [
          `job      ${lineage.fineTuningJob}`,
          ...lineage.models.map((m) => `model    ${m}`),
          ...lineage.datasetVersions.map((d) => `dataset  ${d}`),
        ];
        context.out.result(lifecycle.Lineage.toJSON(lineage), lines.join('\n'));
      }),
    );
}
