import { copyFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Mesh, startMesh } from '@medmesh/cli/mesh';
import { connect, type MedmeshClient } from '@medmesh/client';
import { type TinyModelOptions, tempDir, writeTinyModel } from '@medmesh/testkit';

/** A whole mesh for one test file: nats-server and the six services as processes, with everything in a folder of its own. */
export type MeshFixture = { mesh: Mesh; client: MedmeshClient; dir: string; stop(): Promise<void> };

export async function startMeshFixture(
  o: { otlpEndpoint?: string; env?: Parameters<typeof startMesh>[0]['env']; roots?: string[] } = {},
): Promise<MeshFixture> {
  const dir = tempDir();
  const mesh = await startMesh(
    {
      stateDir: join(dir, 'state'),
      gatewayPort: 0,
      otlpEndpoint: o.otlpEndpoint,
      uriRoots: [dir, ...(o.roots ?? [])],
      inherited: { PATH: process.env['PATH'] ?? '', HOME: process.env['HOME'] ?? '/' },
      env: { trainer: { METRIC_INTERVAL_MS: '0' }, ...o.env },
    },
    AbortSignal.timeout(120_000),
  );
  const client = connect({ address: mesh.record.gateway });
  return {
    mesh,
    client,
    dir,
    async stop() {
      client.close();
      await mesh.stop();
    },
  };
}

/** A random model with a real tokenizer beside it, as a folder that can be imported. */
export function writeModelFolder(dir: string, tokenizerDir: string, options: TinyModelOptions): string {
  writeTinyModel(dir, options);
  for (const file of readdirSync(tokenizerDir)) copyFileSync(join(tokenizerDir, file), join(dir, file));
  return dir;
}
