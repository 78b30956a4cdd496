import { lifecycle } from '@medmesh/proto';
import type { Client } from '@medmesh/rpc';
import { downloadFile } from './download.ts';
import { type OperationsClient, type WaitOptions, waitForOperation } from './operations.ts';
import { pageThrough } from './page-through.ts';

/** Trained adapters. An adapter is named by id or by full name. */
export type AdaptersClient = {
  name(id: string): string;
  get(idOrName: string): Promise<lifecycle.Adapter>;
  list(): AsyncGenerator<lifecycle.Adapter>;
  delete(idOrName: string): Promise<void>;
  revoke(idOrName: string): Promise<lifecycle.Adapter>;
  lineage(idOrName: string): Promise<lifecycle.Lineage>;
  /** Downloads the PEFT folder and medmesh.json and verifies every file. */
  download(idOrName: string, dir: string): Promise<string[]>;
  /** Has the server write the PEFT folder to a `file://` or `s3://` place of its own. */
  export(
    idOrName: string,
    destinationUri: string,
    wait?: WaitOptions<unknown>,
  ): Promise<lifecycle.ExportAdapterResponse>;
  /** Loads it into every inference server that holds its base, and keeps it there. `onProgress` hears how far each server is. */
  deploy(idOrName: string, wait?: WaitOptions<lifecycle.DeployAdapterMetadata>): Promise<lifecycle.Adapter>;
  /** How far an export (a PEFT folder or a merged model, where the server can read it) is from what was trained: max |Δ log p| over the parity probes. */
  verifyExport(idOrName: string, uri: string, wait?: WaitOptions<unknown>): Promise<number>;
};

const noMetadata = { decode: (bytes: Uint8Array): unknown => bytes };

export function createAdaptersClient(
  service: Client<lifecycle.AdapterServiceDefinition>,
  operations: OperationsClient,
  parent: string,
): AdaptersClient {
  const name = (id: string) => (id.startsWith('projects/') ? id : `${parent}/adapters/${id}`);
  return {
    name,
    get: (idOrName) => service.getAdapter({ name: name(idOrName) }),
    list: () =>
      pageThrough(
        (pageToken) => service.listAdapters({ parent, pageSize: 1000, pageToken }),
        (page) => page.adapters,
      ),
    async delete(idOrName) {
      await service.deleteAdapter({ name: name(idOrName) });
    },
    revoke: (idOrName) => service.revokeAdapter({ name: name(idOrName) }),
    lineage: (idOrName) => service.getLineage({ name: name(idOrName) }),
    async download(idOrName, dir) {
      const adapter = await service.getAdapter({ name: name(idOrName) });
      const written: string[] = [];
      for (const file of adapter.files) {
        written.push(
          await downloadFile(dir, file, service.downloadAdapterFile({ name: adapter.name, path: file.path })),
        );
      }
      return written;
    },
    async export(idOrName, destinationUri, wait) {
      const operation = await service.exportAdapter({ name: name(idOrName), destinationUri });
      return waitForOperation(
        operations,
        operation,
        { response: lifecycle.ExportAdapterResponse, metadata: noMetadata },
        wait,
      );
    },
    async deploy(idOrName, wait) {
      const operation = await service.deployAdapter({ name: name(idOrName) });
      const types = { response: lifecycle.Adapter, metadata: lifecycle.DeployAdapterMetadata };
      return waitForOperation(operations, operation, types, wait);
    },
    async verifyExport(idOrName, uri, wait) {
      const operation = await service.verifyExport({ name: name(idOrName), uri });
      const types = { response: lifecycle.VerifyExportResponse, metadata: noMetadata };
      return (await waitForOperation(operations, operation, types, wait)).maxLogProbabilityDifference;
    },
  };
}
