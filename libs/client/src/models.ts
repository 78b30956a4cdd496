import { model } from '@medmesh/proto';
import type { Client } from '@medmesh/rpc';
import { downloadFile } from './download.ts';
import { type OperationsClient, type WaitOptions, waitForOperation } from './operations.ts';
import { pageThrough } from './page-through.ts';

type Wait = WaitOptions<model.ModelOperationMetadata>;
type Partial<T extends { fromPartial(value: never): unknown }> = Parameters<T['fromPartial']>[0];

/** Base models. A model is named by id or by full name. */
export type ModelsClient = {
  name(id: string): string;
  /** Imports from `file://`, `s3://`, `hf://` or `modelscope://` and waits. */
  import(request: Partial<typeof model.ImportModelRequest>, wait?: Wait): Promise<model.Model>;
  /** Makes a 4-bit model and waits. */
  quantize(request: Partial<typeof model.QuantizeModelRequest>, wait?: Wait): Promise<model.Model>;
  /** Makes a 16-bit model of a base and an adapter and waits. */
  merge(request: Partial<typeof model.MergeAdapterRequest>, wait?: Wait): Promise<model.Model>;
  /** Writes a model to a folder or bucket that the server may write to, as its files or as one GGUF file, and waits. */
  export(request: Partial<typeof model.ExportModelRequest>, wait?: Wait): Promise<model.ExportModelResponse>;
  get(idOrName: string): Promise<model.Model>;
  list(): AsyncGenerator<model.Model>;
  delete(idOrName: string): Promise<void>;
  /** Downloads every file into a folder and verifies it. */
  download(idOrName: string, dir: string, onFile?: (file: model.ArtifactFile) => void): Promise<string[]>;
};

export function createModelsClient(
  service: Client<model.ModelServiceDefinition>,
  operations: OperationsClient,
  parent: string,
): ModelsClient {
  const name = (id: string) => (id.startsWith('projects/') ? id : `${parent}/models/${id}`);
  const types = { response: model.Model, metadata: model.ModelOperationMetadata };
  return {
    name,
    import: async (request, wait) =>
      waitForOperation(operations, await service.importModel({ parent, ...request }), types, wait),
    quantize: async (request, wait) =>
      waitForOperation(
        operations,
        await service.quantizeModel({ ...request, sourceModel: name(request.sourceModel ?? '') }),
        types,
        wait,
      ),
    merge: async (request, wait) => waitForOperation(operations, await service.mergeAdapter(request), types, wait),
    export: async (request, wait) =>
      waitForOperation(
        operations,
        await service.exportModel({ ...request, name: name(request.name ?? '') }),
        { response: model.ExportModelResponse, metadata: model.ModelOperationMetadata },
        wait,
      ),
    get: (idOrName) => service.getModel({ name: name(idOrName) }),
    list: () =>
      pageThrough(
        (pageToken) => service.listModels({ parent, pageSize: 1000, pageToken }),
        (page) => page.models,
      ),
    async delete(idOrName) {
      await service.deleteModel({ name: name(idOrName) });
    },
    async download(idOrName, dir, onFile) {
      const found = await service.getModel({ name: name(idOrName) });
      const written: string[] = [];
      for (const file of found.files) {
        onFile?.(file);
        written.push(await downloadFile(dir, file, service.downloadModelFile({ name: found.name, path: file.path })));
      }
      return written;
    },
  };
}
