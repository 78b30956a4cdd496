import { openCatalog } from '@medmesh/catalog';
import { listDevices } from '@medmesh/engine';
import { invalidField } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import { bind, callerTenant, type ServiceBinding } from '@medmesh/rpc';
import type { ServiceContext, Started } from '@medmesh/service';
import { createAdapters } from './adapters.ts';
import * as admin from './admin.ts';
import { createAdmission } from './admission.ts';
import { createBases } from './bases.ts';
import type { InferenceConfig } from './config.ts';
import { createConstraintCompiler } from './constraint/compiler.ts';
import { createConstraints } from './constraints.ts';
import { complete, type GenerateDeps, generate, runningKey } from './generate.ts';
import { openInferenceService } from './open-inference.ts';
import { prepareRequest } from './prepare-request.ts';
import { score } from './score.ts';
import { createTokenRate } from './token-rate.ts';

const inferenceService = (deps: GenerateDeps): ServiceBinding =>
  bind(inference.InferenceServiceDefinition, {
    generate: (request, context) => generate(deps, request, callerTenant(context), context.signal),
    complete: (request, context) => complete(deps, request, callerTenant(context), context.signal),
    score: (request, context) => score(deps, request, context.signal),
    cancel(request, context) {
      const running = deps.running.get(runningKey(callerTenant(context), request.requestId));
      running?.abort();
      return Promise.resolve({ found: running !== undefined });
    },
    async countTokens(request, context) {
      if (request.request === undefined) throw invalidField('request', 'is missing');
      const prepared = await prepareRequest(deps, request.request, '', context.signal);
      prepared.release();
      return { promptTokenCount: prepared.tokens.length, contextLength: prepared.base.model.info.contextLength };
    },
  });

const adminService = (deps: admin.AdminDeps): ServiceBinding =>
  bind(inference.InferenceAdminServiceDefinition, {
    loadBase: (request) => admin.loadBase(deps, request),
    unloadBase: (request) => admin.unloadBase(deps, request),
    loadAdapter: (request) => admin.loadAdapter(deps, request),
    unloadAdapter: (request) => admin.unloadAdapter(deps, request),
    listLoadedAdapters: () => Promise.resolve(admin.listLoadedAdapters(deps)),
    getModelInfo: (request) => admin.getModelInfo(deps, request),
    getLoad: () => Promise.resolve(admin.getLoad(deps)),
    drain() {
      deps.admission.close();
      return Promise.resolve({ runningRequestCount: deps.admission.running });
    },
  });

/** Preloads the bases asked for and returns the services. */
export async function startInference(context: ServiceContext<InferenceConfig>): Promise<Started> {
  const { records, store, cache, log, config, metrics, signal } = context;
  const device = listDevices()[0];
  const baseDeps = {
    catalog: await openCatalog(records),
    store,
    cache,
    log,
    config,
    device: device === undefined ? 'none' : `${device.kind} (${device.isa}, ${device.threads} threads)`,
    signal,
  };
  const bases = createBases(baseDeps);
  const adapters = createAdapters(baseDeps, bases, Date.now);
  const admission = createAdmission(config.MAX_RUNNING_REQUESTS, config.MAX_WAITING_REQUESTS);
  const compiler = createConstraintCompiler();
  const rate = createTokenRate(Date.now);
  const generated = metrics.counter({ name: 'medmesh_generation_tokens_total', help: 'tokens generated' });
  const firstToken = metrics.histogram({
    name: 'medmesh_time_to_first_token_seconds',
    help: 'from the request to its first token',
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
  });
  metrics.gauge({
    name: 'medmesh_num_requests_running',
    help: 'requests being answered',
    collect: (set) => set(admission.running),
  });
  metrics.gauge({
    name: 'medmesh_num_requests_waiting',
    help: 'requests in the queue',
    collect: (set) => set(admission.waiting),
  });

  for (const ref of config.PRELOAD_BASES.split(',').filter((name) => name !== '')) {
    const lease = await bases.acquire(await bases.resolve(ref.trim()));
    lease.release();
  }
  const deps: GenerateDeps = {
    bases,
    adapters,
    constraints: createConstraints(compiler),
    admission,
    running: new Map(),
    onTokens(count) {
      rate.add(count);
      generated.add(count);
    },
    onFirstToken: (seconds) => firstToken.observe(seconds),
  };
  return {
    services: [
      inferenceService(deps),
      openInferenceService({ bases, adapters, health: context.health }),
      adminService({ bases, adapters, admission, tokensPerSecond: () => rate.rate() }),
    ],
    stop() {
      admission.close();
      return Promise.resolve();
    },
    async close() {
      await compiler.close();
      await adapters.resident.close();
      await bases.close();
    },
  };
}
