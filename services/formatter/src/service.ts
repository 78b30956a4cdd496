import { openCatalog } from '@medmesh/catalog';
import { dataset } from '@medmesh/proto';
import { bind, type ServiceBinding } from '@medmesh/rpc';
import { createOperations, type Operations, type ServiceContext, type Started } from '@medmesh/service';
import { traceId } from '@medmesh/telemetry';
import { buildVersion, checkBuild, type ReportProgress, validateVersion } from './build-version.ts';
import type { FormatterConfig } from './config.ts';
import { createDataset, deleteDataset, getDataset, listDatasets } from './datasets.ts';
import type { FormatterDeps } from './deps.ts';
import { checkErase, eraseSubject } from './erase/erase-subject.ts';
import { createModelTokenizers } from './model-tokenizers.ts';
import { previewExamples } from './preview-examples.ts';
import { getVersion, listVersions } from './read-versions.ts';
import { renderTemplate } from './render-template.ts';
import { detokenize, getTokenizer, tokenize } from './tokenize.ts';
import { transformDataset, transformedBuild } from './transform-dataset.ts';
import { createUploadUrl, uploadFile } from './upload-file.ts';

const kinds = {
  build: 'dataset.build',
  validate: 'dataset.validate',
  transform: 'dataset.transform',
  erase: 'dataset.erase',
} as const;

/** At most one progress record in this time. */
const reportMs = 250;

const typeUrl = (name: string): string => `type.googleapis.com/medmesh.dataset.v1.${name}`;

const packMetadata = (metadata: Partial<dataset.DatasetVersionMetadata>) => ({
  typeUrl: typeUrl('DatasetVersionMetadata'),
  bytes: dataset.DatasetVersionMetadata.encode(dataset.DatasetVersionMetadata.fromPartial(metadata)).finish(),
});

const projectOf = (name: string): string => name.split('/')[1] ?? '';

function datasetService(deps: FormatterDeps, operations: Operations): ServiceBinding {
  const begun = (totalByteCount: number) =>
    packMetadata({ totalByteCount, createTime: new Date(), traceId: traceId() ?? '' });
  return bind(dataset.DatasetServiceDefinition, {
    createDataset: (request) => createDataset(deps, request),
    getDataset: (request) => getDataset(deps, request),
    listDatasets: (request) => listDatasets(deps, request),
    deleteDataset: (request) => deleteDataset(deps, request),
    uploadDatasetFile: (messages, context) => uploadFile(deps, messages, context.signal),
    createUploadUrl: (request) => createUploadUrl(deps, request),
    async createDatasetVersion(request, context) {
      const { totalBytes } = await checkBuild(deps, request, context.signal);
      return operations.start({
        kind: kinds.build,
        project: projectOf(request.parent),
        request: {
          typeUrl: typeUrl('CreateDatasetVersionRequest'),
          bytes: dataset.CreateDatasetVersionRequest.encode({ ...request, requestId: '' }).finish(),
        },
        metadata: begun(totalBytes),
        requestId: request.requestId,
      });
    },
    async validateDatasetVersion(request, context) {
      const { totalBytes } = await checkBuild(deps, request, context.signal);
      return operations.start({
        kind: kinds.validate,
        project: projectOf(request.parent),
        request: {
          typeUrl: typeUrl('ValidateDatasetVersionRequest'),
          bytes: dataset.ValidateDatasetVersionRequest.encode(request).finish(),
        },
        metadata: begun(totalBytes),
      });
    },
    async transformDataset(request, context) {
      const build = await transformedBuild(deps, request);
      const { totalBytes } = await checkBuild(deps, build, context.signal);
      return operations.start({
        kind: kinds.transform,
        project: projectOf(build.parent),
        request: {
          typeUrl: typeUrl('TransformDatasetRequest'),
          bytes: dataset.TransformDatasetRequest.encode({ ...request, requestId: '' }).finish(),
        },
        metadata: begun(totalBytes),
        requestId: request.requestId,
      });
    },
    async eraseSubject(request) {
      checkErase(request);
      return operations.start({
        kind: kinds.erase,
        project: projectOf(request.parent),
        request: {
          typeUrl: typeUrl('EraseSubjectRequest'),
          bytes: dataset.EraseSubjectRequest.encode({ ...request, requestId: '' }).finish(),
        },
        metadata: begun(0),
        requestId: request.requestId,
      });
    },
    getDatasetVersion: (request) => getVersion(deps, request.name),
    listDatasetVersions: (request) => listVersions(deps, request),
    previewExamples: (request, context) => previewExamples(deps, request, context.signal),
  });
}

const tokenizerService = (deps: FormatterDeps): ServiceBinding =>
  bind(dataset.TokenizerServiceDefinition, {
    tokenize: (request, context) => tokenize(deps, request, context.signal),
    detokenize: (request, context) => detokenize(deps, request, context.signal),
    renderTemplate: (request, context) => renderTemplate(deps, request, context.signal),
    getTokenizer: (request, context) => getTokenizer(deps, request, context.signal),
  });

/** Starts the workers of this service's operations and returns its services. */
export async function startFormatter(context: ServiceContext<FormatterConfig>): Promise<Started> {
  const { records, store, cache, log, config } = context;
  const catalog = await openCatalog(records);
  const tokenizers = createModelTokenizers({ catalog, cache, maxLoaded: config.MAX_LOADED_TOKENIZERS });
  const deps: FormatterDeps = { catalog, records, store, tokenizers, log, config };
  const operations = await createOperations(context);

  type MessageType<T> = { encode(message: T): { finish(): Uint8Array }; decode(bytes: Uint8Array): T };
  type Verb<Q, R> = (deps: FormatterDeps, request: Q, report: ReportProgress, signal: AbortSignal) => Promise<R>;
  const run = <Q, R>(
    kind: string,
    request: MessageType<Q>,
    response: MessageType<R>,
    responseType: string,
    verb: Verb<Q, R>,
  ) =>
    operations.run(kind, async (operation) => {
      const createTime = new Date();
      let lastMs = 0;
      let sending: Promise<void> = Promise.resolve();
      const report: ReportProgress = ({ rowCount, byteCount, totalBytes }) => {
        if (Date.now() - lastMs < reportMs) return;
        lastMs = Date.now();
        const metadata = packMetadata({
          rowCount,
          byteCount,
          totalByteCount: totalBytes,
          createTime,
          traceId: traceId() ?? '',
        });
        // Progress is for people: a lost report is repaired by the next.
        sending = operation
          .update(metadata)
          .catch((error: unknown) => log.debug({ err: error }, 'progress was not recorded'));
      };
      const result = await verb(deps, request.decode(operation.request), report, operation.signal);
      await sending;
      return { typeUrl: typeUrl(responseType), bytes: response.encode(result).finish() };
    });

  const workers = await Promise.all([
    run(kinds.build, dataset.CreateDatasetVersionRequest, dataset.DatasetVersion, 'DatasetVersion', buildVersion),
    run(kinds.transform, dataset.TransformDatasetRequest, dataset.DatasetVersion, 'DatasetVersion', transformDataset),
    run(kinds.erase, dataset.EraseSubjectRequest, dataset.EraseSubjectResponse, 'EraseSubjectResponse', eraseSubject),
    run(kinds.validate, dataset.ValidateDatasetVersionRequest, dataset.DataStats, 'DataStats', validateVersion),
  ]);
  return {
    services: [datasetService(deps, operations), tokenizerService(deps)],
    async stop() {
      await Promise.all(workers.map((worker) => worker.stop()));
    },
  };
}
