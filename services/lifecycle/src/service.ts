import { names, openCatalog, operationKinds } from '@medmesh/catalog';
import { notFound } from '@medmesh/errors';
import { createJobEvents } from '@medmesh/jobs';
import { lifecycle, longrunning } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { bind, type ServiceBinding } from '@medmesh/rpc';
import { createOperations, type Operations, type ServiceContext, type Started } from '@medmesh/service';
import * as adapters from './adapters.ts';
import * as changes from './change-jobs.ts';
import * as checkpoints from './checkpoints.ts';
import type { LifecycleConfig } from './config.ts';
import { createFineTuningJob } from './create-job.ts';
import { deployAdapter, deployAdapterKind, servableAdapter } from './deploy-adapter.ts';
import type { LifecycleDeps } from './deps.ts';
import { checkExportUri, exportAdapter, exportAdapterKind } from './export-adapter.ts';
import { createLocalLauncher } from './launcher.ts';
import { limits, targetModules } from './limits.ts';
import { promoteCheckpoint } from './promote-checkpoint.ts';
import { getFineTuningJob, listFineTuningJobs } from './read-jobs.ts';
import { reconcileForever } from './reconcile.ts';
import { resolveSpec } from './resolve-spec.ts';
import { listJobEvents, queryJobMetrics, type WatchDeps, watchFineTuningJob } from './watch-job.ts';

const typeUrl = (name: string) => `type.googleapis.com/${name}`;

async function estimateFineTuningJob(
  deps: LifecycleDeps,
  request: lifecycle.EstimateFineTuningJobRequest,
): Promise<lifecycle.FineTuningEstimate> {
  names.project.parse(request.parent);
  const resolved = await resolveSpec(deps, request.fineTuningJob ?? lifecycle.FineTuningJob.fromPartial({}));
  return resolved.estimate;
}

async function getModelLimits(
  deps: LifecycleDeps,
  request: lifecycle.GetModelLimitsRequest,
): Promise<lifecycle.ModelLimits> {
  names.model.parse(request.model);
  const found = (await deps.catalog.models.get(keyOf(request.model)))?.value;
  if (found === undefined) throw notFound(request.model);
  return {
    maxRank: limits.maxRank,
    maxRowTokens: Math.min(limits.maxRowTokens, found.contextLength),
    maxSteps: limits.maxSteps,
    targetModules: [...targetModules],
    methods: ['supervised'],
  };
}

const fineTuningService = (deps: WatchDeps): ServiceBinding =>
  bind(lifecycle.FineTuningServiceDefinition, {
    createFineTuningJob: (request) => createFineTuningJob(deps, request),
    getFineTuningJob: (request) => getFineTuningJob(deps, request),
    listFineTuningJobs: (request) => listFineTuningJobs(deps, request),
    updateFineTuningJob: (request) => changes.updateFineTuningJob(deps, request),
    deleteFineTuningJob: (request) => changes.deleteFineTuningJob(deps, request),
    cancelFineTuningJob: (request) => changes.cancelFineTuningJob(deps, request),
    pauseFineTuningJob: (request) => changes.pauseFineTuningJob(deps, request),
    resumeFineTuningJob: (request) => changes.resumeFineTuningJob(deps, request),
    estimateFineTuningJob: (request) => estimateFineTuningJob(deps, request),
    watchFineTuningJob: (request, context) => watchFineTuningJob(deps, request, context.signal),
    listJobEvents: (request) => listJobEvents(deps, request),
    queryJobMetrics: (request) => queryJobMetrics(deps, request),
    listCheckpoints: (request) => checkpoints.listCheckpoints(deps, request),
    getCheckpoint: (request) => checkpoints.getCheckpoint(deps, request),
    deleteCheckpoint: (request) => checkpoints.deleteCheckpoint(deps, request),
    saveCheckpoint: (request) => checkpoints.saveCheckpoint(deps, request),
    promoteCheckpoint: (request) => promoteCheckpoint(deps, request),
    getModelLimits: (request) => getModelLimits(deps, request),
  });

const adapterService = (deps: LifecycleDeps, operations: Operations): ServiceBinding =>
  bind(lifecycle.AdapterServiceDefinition, {
    getAdapter: (request) => adapters.getAdapter(deps, request),
    listAdapters: (request) => adapters.listAdapters(deps, request),
    updateAdapter: (request) => adapters.updateAdapter(deps, request),
    deleteAdapter: (request) => adapters.deleteAdapter(deps, request),
    revokeAdapter: (request) => adapters.revokeAdapter(deps, request),
    deprecateAdapter: (request) => adapters.deprecateAdapter(deps, request),
    getLineage: (request) => adapters.getLineage(deps, request),
    downloadAdapterFile: (request, context) => adapters.downloadAdapterFile(deps, request, context.signal),
    async verifyExport(request) {
      const adapter = await adapters.getAdapter(deps, { name: request.name });
      checkExportUri('uri', request.uri);
      return operations.start({
        kind: operationKinds.verifyExport,
        project: names.adapter.parse(adapter.name).project,
        request: {
          typeUrl: typeUrl('medmesh.lifecycle.v1.VerifyExportRequest'),
          bytes: lifecycle.VerifyExportRequest.encode(request).finish(),
        },
      });
    },
    async deployAdapter(request) {
      const adapter = await servableAdapter(deps, request.name);
      return operations.start({
        kind: deployAdapterKind,
        project: names.adapter.parse(adapter.name).project,
        request: {
          typeUrl: typeUrl('medmesh.lifecycle.v1.DeployAdapterRequest'),
          bytes: lifecycle.DeployAdapterRequest.encode({ ...request, requestId: '' }).finish(),
        },
        requestId: request.requestId,
      });
    },
    async exportAdapter(request) {
      const adapter = await adapters.getAdapter(deps, { name: request.name });
      return operations.start({
        kind: exportAdapterKind,
        project: names.adapter.parse(adapter.name).project,
        request: {
          typeUrl: typeUrl('medmesh.lifecycle.v1.ExportAdapterRequest'),
          bytes: lifecycle.ExportAdapterRequest.encode({ ...request, requestId: '' }).finish(),
        },
        requestId: request.requestId,
      });
    },
  });

const operationsService = (operations: Operations): ServiceBinding =>
  bind(longrunning.OperationsDefinition, {
    getOperation: (request) => operations.get(request.name),
    listOperations: (request) => operations.list(request),
    waitOperation: (request, context) => operations.wait(request.name, request.timeout, context.signal),
    async cancelOperation(request) {
      await operations.cancel(request.name);
      return {};
    },
    async deleteOperation(request) {
      await operations.delete(request.name);
      return {};
    },
  });

/** Opens the records, starts reconciliation and the workers for exports and deployments, and returns the services. */
export async function startLifecycle(context: ServiceContext<LifecycleConfig>): Promise<Started> {
  const { nc, records, store, publisher, log, config, signal } = context;
  const deps: WatchDeps = {
    nc,
    catalog: await openCatalog(records),
    records,
    store,
    publisher,
    events: createJobEvents(publisher),
    launcher: createLocalLauncher(publisher),
    log,
    now: Date.now,
    signal,
  };
  const operations = await createOperations(context);
  const exporter = await operations.run(exportAdapterKind, async (operation) => ({
    typeUrl: typeUrl('medmesh.lifecycle.v1.ExportAdapterResponse'),
    bytes: lifecycle.ExportAdapterResponse.encode(
      await exportAdapter(deps, lifecycle.ExportAdapterRequest.decode(operation.request), operation.signal),
    ).finish(),
  }));
  const deploying = { ...deps, inferenceAddresses: config.INFERENCE_ADDRS };
  const deployer = await operations.run(
    deployAdapterKind,
    async (operation) => {
      const update = (metadata: lifecycle.DeployAdapterMetadata) =>
        operation.update({
          typeUrl: typeUrl('medmesh.lifecycle.v1.DeployAdapterMetadata'),
          bytes: lifecycle.DeployAdapterMetadata.encode(metadata).finish(),
        });
      const request = lifecycle.DeployAdapterRequest.decode(operation.request);
      return {
        typeUrl: typeUrl('medmesh.lifecycle.v1.Adapter'),
        bytes: lifecycle.Adapter.encode(await deployAdapter(deploying, request, update, operation.signal)).finish(),
      };
    },
    { concurrency: 4 },
  );
  const stop = new AbortController();
  const reconciling = reconcileForever(
    { ...deps, pausedTtlMs: config.PAUSED_TTL_MS },
    config.RECONCILE_INTERVAL_MS,
    AbortSignal.any([signal, stop.signal]),
  );
  return {
    services: [fineTuningService(deps), adapterService(deps, operations), operationsService(operations)],
    async stop() {
      stop.abort();
      await Promise.all([exporter.stop(), deployer.stop()]);
      await reconciling;
    },
  };
}
