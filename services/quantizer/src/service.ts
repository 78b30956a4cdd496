import { openCatalog } from '@medmesh/catalog';
import { invalidField } from '@medmesh/errors';
import { model } from '@medmesh/proto';
import { bind, type ServiceBinding } from '@medmesh/rpc';
import { createOperations, type Operations, type ServiceContext, type Started } from '@medmesh/service';
import { traceId } from '@medmesh/telemetry';
import type { QuantizerConfig } from './config.ts';
import type { QuantizerDeps, Report } from './deps.ts';
import { importModel } from './import-model.ts';
import { checkMerge, mergeAdapter } from './merge-adapter.ts';
import { checkNewModel } from './new-model.ts';
import { checkQuantize, quantizeModel } from './quantize-model.ts';
import * as models from './read-models.ts';
import { checkImportUri } from './sources/open-source.ts';

const kinds = { import: 'model.import', quantize: 'model.quantize', merge: 'model.merge', export: 'model.export' } as const;

const typeUrl = (name: string) => `type.googleapis.com/medmesh.model.v1.${name}`;

type MessageType<T> = { encode(message: T): { finish(): Uint8Array }; decode(bytes: Uint8Array): T };

const packMetadata = (metadata: model.ModelOperationMetadata) => ({
  typeUrl: typeUrl('ModelOperationMetadata'),
  bytes: model.ModelOperationMetadata.encode(metadata).finish(),
});

const modelService = (deps: QuantizerDeps, operations: Operations): ServiceBinding => {
  const start = <T extends { requestId: string }>(kind: string, type: MessageType<T>, requestType: string, request: T, modelName: string) =>
    operations.start({
      kind,
      project: modelName.split('/')[1] ?? '',
      request: { typeUrl: typeUrl(requestType), bytes: type.encode({ ...request, requestId: '' }).finish() },
      metadata: packMetadata(
        model.ModelOperationMetadata.fromPartial({ model: modelName, createTime: new Date(), traceId: traceId() ?? '' }),
      ),
      requestId: request.requestId,
    });
  const parentOf = (name: string) => name.split('/').slice(0, 2).join('/');
  // An id that is taken is told at once; a repeat of a known request_id is not a second model, so it is not checked.
  const newName = async (parent: string, modelId: string, requestId: string) =>
    requestId === '' ? checkNewModel(deps, parent, modelId) : `${parent}/models/${modelId}`;

  return bind(model.ModelServiceDefinition, {
    async importModel(request) {
      checkImportUri(request.uri);
      return start(kinds.import, model.ImportModelRequest, 'ImportModelRequest', request, await newName(request.parent, request.modelId, request.requestId));
    },
    async quantizeModel(request) {
      const source = await checkQuantize(deps, request);
      const name = await newName(parentOf(source.name), request.modelId, request.requestId);
      return start(kinds.quantize, model.QuantizeModelRequest, 'QuantizeModelRequest', request, name);
    },
    async mergeAdapter(request) {
      const { adapter } = await checkMerge(deps, request);
      const name = await newName(parentOf(adapter.name), request.modelId, request.requestId);
      return start(kinds.merge, model.MergeAdapterRequest, 'MergeAdapterRequest', request, name);
    },
    async exportModel(request) {
      const source = await models.readyModel(deps, request.name);
      if (!/^(file|s3):\/\//.test(request.destinationUri)) throw invalidField('destination_uri', 'use file:///folder or s3://bucket/prefix');
      return start(kinds.export, model.ExportModelRequest, 'ExportModelRequest', request, source.name);
    },
    getModel: (request) => models.getModel(deps, request),
    listModels: (request) => models.listModels(deps, request),
    deleteModel: (request) => models.deleteModel(deps, request),
    downloadModelFile: (request, context) => models.downloadModelFile(deps, request, context.signal),
  });
};

/** At most one progress record in this time. */
const reportMs = 250;

/** Starts the workers of this service's operations and returns the service. */
export async function startQuantizer(context: ServiceContext<QuantizerConfig>): Promise<Started> {
  const { records, store, cache, log, config } = context;
  const deps: QuantizerDeps = { catalog: await openCatalog(records), store, cache, log, config };
  const operations = await createOperations(context);

  type Verb<Q, R> = (deps: QuantizerDeps, request: Q, operation: string, report: Report, signal: AbortSignal) => Promise<R>;
  const run = <Q, R>(kind: string, request: MessageType<Q>, response: MessageType<R>, responseType: string, verb: Verb<Q, R>) =>
    operations.run(kind, async (operation) => {
      const started = new Date();
      let lastMs = 0;
      let lastPhase = '';
      const report: Report = (phase, doneBytes, totalBytes) => {
        const now = Date.now();
        if (phase === lastPhase && doneBytes < totalBytes && now - lastMs < reportMs) return;
        lastMs = now;
        lastPhase = phase;
        const metadata = model.ModelOperationMetadata.fromPartial({ phase, doneBytes, totalBytes, createTime: started, traceId: traceId() ?? '' });
        // Progress is for people: a lost report is repaired by the next.
        operation.update(packMetadata(metadata)).catch((error: unknown) => log.debug({ err: error }, 'progress was not recorded'));
      };
      const result = await verb(deps, request.decode(operation.request), operation.name, report, operation.signal);
      return { typeUrl: typeUrl(responseType), bytes: response.encode(result).finish() };
    });

  const workers = await Promise.all([
    run(kinds.import, model.ImportModelRequest, model.Model, 'Model', importModel),
    run(kinds.quantize, model.QuantizeModelRequest, model.Model, 'Model', quantizeModel),
    run(kinds.merge, model.MergeAdapterRequest, model.Model, 'Model', mergeAdapter),
    run(kinds.export, model.ExportModelRequest, model.ExportModelResponse, 'ExportModelResponse', (d, request, _operation, report, signal) =>
      models.exportModel(d, request, (done, total) => report('STORE', done, total), signal),
    ),
  ]);
  return {
    services: [modelService(deps, operations)],
    async stop() {
      await Promise.all(workers.map((worker) => worker.stop()));
    },
  };
}
