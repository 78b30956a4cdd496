import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { Failure } from '@medmesh/errors';
import { dataset } from '@medmesh/proto';
import type { Client } from '@medmesh/rpc';
import { type OperationsClient, type WaitOptions, waitForOperation } from './operations.ts';
import { pageThrough } from './page-through.ts';

type Wait = WaitOptions<dataset.DatasetVersionMetadata>;
type SpecInput = Parameters<typeof dataset.DatasetVersionSpec.fromPartial>[0];

const chunkBytes = 256 * 1024;

/** Datasets and their versions. A dataset is named by id or by full name. */
export type DatasetsClient = {
  name(id: string): string;
  /** Creates a dataset, or returns it if it is there. */
  ensure(id: string, displayName?: string): Promise<dataset.Dataset>;
  get(idOrName: string): Promise<dataset.Dataset>;
  list(): AsyncGenerator<dataset.Dataset>;
  delete(idOrName: string): Promise<void>;
  /** Uploads a file of rows; the digest is what a spec's source names. */
  upload(
    path: string,
    onProgress?: (done: number, total: number) => void,
  ): Promise<{ digest: string; sizeBytes: number; fileName: string }>;
  buildVersion(idOrName: string, spec: SpecInput, wait?: Wait, requestId?: string): Promise<dataset.DatasetVersion>;
  /** Does all that buildVersion does, but keeps nothing. */
  validate(idOrName: string, spec: SpecInput, wait?: Wait): Promise<dataset.DataStats>;
  /** Derives a version from another, under its spec with these changes. */
  transform(
    version: string,
    changes: Omit<Parameters<typeof dataset.TransformDatasetRequest.fromPartial>[0], 'datasetVersion' | 'requestId'>,
    wait?: Wait,
    requestId?: string,
  ): Promise<dataset.DatasetVersion>;
  /** Removes a subject's rows from the project's uploads and versions, and lists what was trained on them. */
  eraseSubject(subjectDigest: string, wait?: Wait, requestId?: string): Promise<dataset.EraseSubjectResponse>;
  getVersion(name: string): Promise<dataset.DatasetVersion>;
  listVersions(idOrName: string): AsyncGenerator<dataset.DatasetVersion>;
  /** Rendered text, tokens and mask of chosen rows. Returns patient text: ask only for what you may see. */
  preview(
    idOrName: string,
    what: { spec?: SpecInput; datasetVersion?: string; rowIndices?: number[] },
  ): Promise<dataset.PreviewExample[]>;
};

export function createDatasetsClient(
  service: Client<dataset.DatasetServiceDefinition>,
  operations: OperationsClient,
  parent: string,
): DatasetsClient {
  const name = (id: string) => (id.startsWith('projects/') ? id : `${parent}/datasets/${id}`);
  return {
    name,
    async ensure(id, displayName = '') {
      try {
        return await service.createDataset({ parent, datasetId: id, dataset: { displayName } });
      } catch (error) {
        if (error instanceof Failure && error.code === 'already_exists') return service.getDataset({ name: name(id) });
        throw error;
      }
    },
    get: (idOrName) => service.getDataset({ name: name(idOrName) }),
    list: () =>
      pageThrough(
        (pageToken) => service.listDatasets({ parent, pageSize: 1000, pageToken }),
        (page) => page.datasets,
      ),
    async delete(idOrName) {
      await service.deleteDataset({ name: name(idOrName) });
    },
    async upload(path, onProgress) {
      const { size } = await stat(path);
      const fileName = basename(path);
      async function* messages() {
        yield { data: { $case: 'header' as const, value: { parent, fileName, sizeBytes: size, digest: '' } } };
        let done = 0;
        for await (const chunk of createReadStream(path, { highWaterMark: chunkBytes }) as AsyncIterable<Buffer>) {
          yield { data: { $case: 'chunk' as const, value: chunk } };
          done += chunk.length;
          onProgress?.(done, size);
        }
      }
      const { digest, sizeBytes } = await service.uploadDatasetFile(messages());
      return { digest, sizeBytes, fileName };
    },
    async buildVersion(idOrName, spec, wait, requestId = '') {
      const operation = await service.createDatasetVersion({ parent: name(idOrName), spec, requestId });
      return waitForOperation(
        operations,
        operation,
        { response: dataset.DatasetVersion, metadata: dataset.DatasetVersionMetadata },
        wait,
      );
    },
    async validate(idOrName, spec, wait) {
      const operation = await service.validateDatasetVersion({ parent: name(idOrName), spec });
      return waitForOperation(
        operations,
        operation,
        { response: dataset.DataStats, metadata: dataset.DatasetVersionMetadata },
        wait,
      );
    },
    async transform(version, changes, wait, requestId = '') {
      const operation = await service.transformDataset({ ...changes, datasetVersion: version, requestId });
      return waitForOperation(
        operations,
        operation,
        { response: dataset.DatasetVersion, metadata: dataset.DatasetVersionMetadata },
        wait,
      );
    },
    async eraseSubject(subjectDigest, wait, requestId = '') {
      const operation = await service.eraseSubject({ parent, subjectDigest, requestId });
      return waitForOperation(
        operations,
        operation,
        { response: dataset.EraseSubjectResponse, metadata: dataset.DatasetVersionMetadata },
        wait,
      );
    },
    getVersion: (version) => service.getDatasetVersion({ name: version }),
    listVersions: (idOrName) =>
      pageThrough(
        (pageToken) => service.listDatasetVersions({ parent: name(idOrName), pageSize: 1000, pageToken }),
        (page) => page.datasetVersions,
      ),
    async preview(idOrName, what) {
      const { examples } = await service.previewExamples({ parent: name(idOrName), ...what });
      return examples;
    },
  };
}
