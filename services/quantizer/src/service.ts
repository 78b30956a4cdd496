import { openCatalog, operationKinds } from '@medmesh/catalog';
import { Failure } from '@medmesh/errors';
import { lifecycle, model } from '@medmesh/proto';
import { bind, type ServiceBinding } from '@medmesh/rpc';
import { createOperations, type Operations, type ServiceContext, type Started } from '@medmesh/service';
import type { QuantizerConfig } from './config.ts';
import type { QuantizerDeps } from './deps.ts';
import { exportGguf } from './export-gguf.ts';
import { checkExport, exportModel, isGguf } from './export-model.ts';
import { importedName, importModel } from './import-model.ts';
import { checkMerge, mergeAdapter, mergedName } from './merge-adapter.ts';
import { checkFree, newModelName } from './new-model.ts';
import { startVerb, workOn } from './operations.ts';
import { checkQuantize, quantizedName, quantizeModel } from './quantize-model.ts';
import * as models from './read-models.ts';
import { checkOrigin } from './sources/open-source.ts';
import { sweepStaging } from './staging.ts';
import { packVerified, verifyExport } from './verify-export.ts';

const modelVerb = { response: model.Model, responseType: 'Model' };

const exportVerb = {
  request: model.ExportModelRequest,
  requestType: 'ExportModelRequest',
  response: model.ExportModelResponse,
  responseType: 'ExportModelResponse',
  modelOf: (request: model.ExportModelRequest) => request.name,
};

const verbs = {
  import: {
    ...modelVerb,
    kind: 'model.import',
    request: model.ImportModelRequest,
    requestType: 'ImportModelRequest',
    modelOf: importedName,
  },
  quantize: {
    ...modelVerb,
    kind: 'model.quantize',
    request: model.QuantizeModelRequest,
    requestType: 'QuantizeModelRequest',
    modelOf: quantizedName,
  },
  merge: {
    ...modelVerb,
    kind: 'model.merge',
    request: model.MergeAdapterRequest,
    requestType: 'MergeAdapterRequest',
    modelOf: mergedName,
  },
  export: { ...exportVerb, kind: 'model.export' },
  exportGguf: { ...exportVerb, kind: 'model.export-gguf' },
};

function modelService(deps: QuantizerDeps, operations: Operations): ServiceBinding {
  // An id that is taken is told at once; of a request that is repeated, the id is its own.
  const freeName = (parent: string, { modelId }: { modelId: string }) => {
    const name = newModelName(parent, modelId);
    return () => checkFree(deps, name);
  };
  const parentOf = (name: string) => name.split('/').slice(0, 2).join('/');

  return bind(model.ModelServiceDefinition, {
    async importModel(request) {
      checkOrigin(deps.config, request);
      return startVerb(operations, verbs.import, request, freeName(request.parent, request));
    },
    async quantizeModel(request) {
      await checkQuantize(deps, request);
      return startVerb(operations, verbs.quantize, request, freeName(parentOf(request.sourceModel), request));
    },
    async mergeAdapter(request) {
      await checkMerge(deps, request);
      return startVerb(operations, verbs.merge, request, freeName(parentOf(request.adapter), request));
    },
    async exportModel(request) {
      await checkExport(deps, request);
      return startVerb(operations, isGguf(request.format) ? verbs.exportGguf : verbs.export, request);
    },
    getModel: (request) => models.getModel(deps, request),
    listModels: (request) => models.listModels(deps, request),
    deleteModel: (request) => models.deleteModel(deps, request),
    downloadModelFile: (request, context) => models.downloadModelFile(deps, request, context.signal),
  });
}

async function hasEnded(operations: Operations, name: string): Promise<boolean> {
  try {
    return (await operations.get(name)).done;
  } catch (error) {
    if (error instanceof Failure && error.code === 'not_found') return true;
    throw error;
  }
}

/** Starts the workers of this service's operations and returns the service. */
export async function startQuantizer(context: ServiceContext<QuantizerConfig>): Promise<Started> {
  const { records, store, cache, log, config } = context;
  const operations = await createOperations(context);
  const catalog = await openCatalog(records);
  const deps: QuantizerDeps = { catalog, store, cache, log, config, hasEnded: (name) => hasEnded(operations, name) };
  await sweepStaging(config.STAGING_DIR);
  const ackWaitMs = config.OPERATION_SILENCE_MS;
  // Copying waits for networks and disks; the engine's work takes all cores.
  const copying = { concurrency: 4, ackWaitMs };
  const computing = { concurrency: 1, ackWaitMs };
  const workers = await Promise.all([
    workOn(operations, log, verbs.import, (request, run) => importModel(deps, request, run), copying),
    workOn(operations, log, verbs.quantize, (request, run) => quantizeModel(deps, request, run), computing),
    workOn(operations, log, verbs.merge, (request, run) => mergeAdapter(deps, request, run), computing),
    workOn(operations, log, verbs.export, (request, run) => exportModel(deps, request, run), copying),
    workOn(operations, log, verbs.exportGguf, (request, run) => exportGguf(deps, request, run), computing),
    operations.run(
      operationKinds.verifyExport,
      async (operation) =>
        packVerified(
          await verifyExport(deps, lifecycle.VerifyExportRequest.decode(operation.request), {
            operation: operation.name,
            signal: operation.signal,
          }),
        ),
      computing,
    ),
  ]);
  return {
    services: [modelService(deps, operations)],
    async stop() {
      await Promise.all(workers.map((worker) => worker.stop()));
    },
  };
}
