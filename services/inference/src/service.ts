import { openCatalog } from '@medmesh/catalog';
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
import { embed } from './embed.ts';
import { watchEngine } from './engine-watch.ts';
import { complete, type GenerateDeps, generate, runningKey } from './generate.ts';
import { type KvEventDeps, watchKvEvents } from './kv-events.ts';
import { openInferenceService } from './open-inference.ts';
import { createPrefixScopes } from './prefix-scope.ts';
import { prepareRequest } from './prepare-request.ts';
import { score } from './score.ts';
import { createServingMetrics } from './serving-metrics.ts';
import { createTokenRate } from './token-rate.ts';

const inferenceService = (deps: GenerateDeps): ServiceBinding =>
  bind(
    inference.InferenceServiceDefinition,
    {
      generate: (request, context) => generate(deps, request, callerTenant(context), context.signal),
      complete: (request, context) => complete(deps, request, callerTenant(context), context.signal),
      score: (request, context) => score(deps, request, callerTenant(context), context.signal),
      embed: (request, context) => embed(deps, request, callerTenant(context), context.signal),
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
    },
    ['generate'],
  );

const adminService = (deps: admin.AdminDeps & { kvEvents: KvEventDeps }): ServiceBinding =>
  bind(inference.InferenceAdminServiceDefinition, {
    loadBase: (request) => admin.loadBase(deps, request),
    unloadBase: (request) => admin.unloadBase(deps, request),
    loadAdapter: (request, context) => admin.loadAdapter(deps, request, context.signal),
    unloadAdapter: (request) => admin.unloadAdapter(deps, request),
    listLoadedAdapters: () => Promise.resolve(admin.listLoadedAdapters(deps)),
    getModelInfo: (request) => admin.getModelInfo(deps, request),
    getLoad: () => Promise.resolve(admin.getLoad(deps)),
    watchKvEvents: (request, context) => watchKvEvents(deps.kvEvents, request, context.signal),
    drain() {
      deps.admission.close();
      return Promise.resolve({ runningRequestCount: deps.admission.running });
    },
  });

/** Tells whoever started the process to start another: what failed is the device in this one, not what was asked. */
const deviceLostExitCode = 75;

/** Preloads the bases asked for and returns the services. */
export async function startInference(context: ServiceContext<InferenceConfig>): Promise<Started> {
  const { records, store, cache, log, config, metrics, signal } = context;
  const ended = Promise.withResolvers<number>();
  let lost = false;
  const baseDeps = {
    catalog: await openCatalog(records),
    store,
    cache,
    log,
    config,
    onDeviceLost() {
      if (lost) return;
      lost = true;
      log.error('the device is lost; requests end and the process with them');
      ended.resolve(deviceLostExitCode);
    },
    signal,
  };
  const bases = createBases(baseDeps);
  const adapters = createAdapters(baseDeps, bases, Date.now);
  const compiler = createConstraintCompiler();
  const rate = createTokenRate(Date.now);
  const admission = createAdmission({
    maxRunning: config.MAX_RUNNING_REQUESTS,
    maxWaiting: config.MAX_WAITING_REQUESTS,
    maxWaitingTokens: config.MAX_WAITING_TOKENS,
    tokensPerSecond: () => rate.rate(),
  });
  const serving = createServingMetrics(metrics, admission, bases, () => {
    const entries = adapters.resident.entries();
    const running = entries.filter(([, entry]) => entry.users > 0).map(([, entry]) => entry.value.record.name);
    return { running, loaded: entries.length };
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
    onTokens: (count) => rate.add(count),
    metrics: serving,
    maxUnreadBytes: config.MAX_UNREAD_BYTES,
    prefixScope:
      config.PREFIX_CACHE === 'on'
        ? createPrefixScopes(config.KV_HASH_KEY === undefined ? undefined : Buffer.from(config.KV_HASH_KEY, 'hex'))
        : undefined,
  };
  const watch = watchEngine({
    bases: () => bases.all(),
    health: context.health,
    log,
    now: () => performance.now(),
    onLoad: (base, load) => serving.engine(base, load),
  });
  await watch.check();
  return {
    services: [
      inferenceService(deps),
      openInferenceService({
        bases,
        adapters,
        health: context.health,
        complete: (request, tenant, signal) => complete(deps, request, tenant, signal),
      }),
      adminService({
        bases,
        adapters,
        admission,
        tokensPerSecond: () => rate.rate(),
        kvBlocks: () => serving.kvBlocks(),
        kvEvents: {
          bases,
          remembers: config.PREFIX_CACHE === 'on',
          maxUnreadBytes: config.MAX_UNREAD_BYTES,
        },
      }),
    ],
    done: ended.promise,
    stop() {
      admission.close();
      watch.stop();
      ended.resolve(0);
      return Promise.resolve();
    },
    async close() {
      await compiler.close();
      await adapters.resident.close();
      await bases.close();
    },
  };
}
