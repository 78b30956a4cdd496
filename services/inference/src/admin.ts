import { notFound } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import type { Adapters, LoadedAdapter } from './adapters.ts';
import type { Admission } from './admission.ts';
import { type Bases, quantizationName } from './bases.ts';
import type { Lease } from './resident.ts';
import { defaultMaxTokens, defaultSampling } from './resolve-sampling.ts';

export type AdminDeps = {
  bases: Bases;
  adapters: Adapters;
  admission: Admission;
  tokensPerSecond: () => number;
  kvBlocks: () => { used: number; total: number };
};

const State = inference.LoadState;

const describe = (adapter: LoadedAdapter, users: number, bytes: number, pinned: boolean): inference.LoadedAdapter => ({
  adapter: adapter.record.name,
  digest: adapter.record.digest,
  baseDigest: adapter.record.baseDigest,
  state: State.READY,
  rank: adapter.engine.rank,
  memoryBytes: bytes,
  runningRequestCount: users,
  parityMaxDifference: adapter.parity.maxDifference,
  parityMeanDifference: adapter.parity.meanDifference,
  parityTokenCount: adapter.parity.tokenCount,
  readyTime: adapter.readyTime,
  pinned,
});

/** States of a load as they happen, then its lease, which `abandon` gets where nobody waits for it any more. */
async function* states<T>(
  load: (onState: (state: inference.LoadState) => void) => Promise<Lease<T>>,
  abandon: (lease: Lease<T>) => Promise<void>,
): AsyncGenerator<inference.LoadState, Lease<T>> {
  const seen: inference.LoadState[] = [State.RESOLVING];
  let wake = () => {};
  let settled = false;
  const loading = load((state) => {
    seen.push(state);
    wake();
  }).finally(() => {
    settled = true;
    wake();
  });
  loading.catch(() => undefined);
  let left = true;
  try {
    while (!settled || seen.length > 0) {
      const state = seen.shift();
      if (state !== undefined) yield state;
      else if (!settled) await new Promise<void>((resolve) => (wake = resolve));
    }
    left = false;
    return await loading;
  } finally {
    if (left) loading.then(abandon).catch(() => undefined);
  }
}

/** Loads a base and keeps it. */
export async function* loadBase(
  deps: AdminDeps,
  request: inference.LoadBaseRequest,
): AsyncGenerator<inference.LoadBaseResponse> {
  const record = await deps.bases.resolve(request.base);
  const answer = (state: inference.LoadState): inference.LoadBaseResponse => ({
    state,
    doneBytes: state === State.READY ? record.weightBytes : 0,
    totalBytes: record.weightBytes,
    baseDigest: record.digest,
  });
  yield answer(State.FETCHING);
  const lease = await deps.bases.acquire(record);
  lease.release();
  yield answer(State.READY);
}

export async function unloadBase(
  deps: AdminDeps,
  request: inference.UnloadBaseRequest,
): Promise<inference.UnloadBaseResponse> {
  const record = await deps.bases.resolve(request.base);
  // From here on nobody gets this base; its adapters hold it until they are gone.
  const dropped = deps.bases.drop(record);
  for (const [key, entry] of deps.adapters.resident.entries()) {
    if (entry.value.record.baseDigest === record.digest) await deps.adapters.resident.drop(key);
  }
  if (!(await dropped)) throw notFound(`${record.name} in memory`);
  return {};
}

/**
 * Loads an adapter: fetch, verify, replay its probes, ready. Whoever pins it and leaves before it is ready has changed their mind: then it goes again,
 * unless it was here before or somebody else uses it.
 */
export async function* loadAdapter(
  deps: AdminDeps,
  request: inference.LoadAdapterRequest,
  signal: AbortSignal,
): AsyncGenerator<inference.LoadedAdapter> {
  const record = await deps.adapters.resolve(request.adapter);
  const partial = inference.LoadedAdapter.fromPartial({
    adapter: record.name,
    digest: record.digest,
    baseDigest: record.baseDigest,
  });
  const { resident } = deps.adapters;
  const wasThere = resident.peek(record.digest) !== undefined;
  const abandon = async (lease: Lease<LoadedAdapter>) => {
    lease.release();
    if (request.pinned && !wasThere) await resident.dropUnused(record.digest);
  };
  const progress = states((onState) => deps.adapters.acquire(record, onState), abandon);
  let ready: inference.LoadedAdapter;
  try {
    let next = await progress.next();
    for (; !next.done; next = await progress.next())
      if (next.value !== State.READY) yield { ...partial, state: next.value };
    const lease = next.value;
    if (signal.aborted) {
      await abandon(lease);
      return;
    }
    if (request.pinned) resident.pin(record.digest);
    const entry = resident.peek(record.digest);
    ready = describe(lease.value, (entry?.users ?? 1) - 1, entry?.bytes ?? 0, request.pinned);
    lease.release();
  } finally {
    await progress.return(undefined as never);
  }
  yield ready;
}

export async function unloadAdapter(
  deps: AdminDeps,
  request: inference.UnloadAdapterRequest,
): Promise<inference.LoadedAdapter> {
  const found = deps.adapters.resident
    .entries()
    .find(([key, entry]) => key === request.adapter || entry.value.record.name === request.adapter);
  if (found === undefined) throw notFound(`${request.adapter} in memory`);
  const [key, entry] = found;
  const last = describe(entry.value, entry.users, entry.bytes, entry.pinned);
  await deps.adapters.resident.drop(key);
  return { ...last, state: State.UNLOADED, runningRequestCount: 0 };
}

export const listLoadedAdapters = (deps: AdminDeps): inference.ListLoadedAdaptersResponse => ({
  adapters: deps.adapters.resident
    .entries()
    .map(([, entry]) => describe(entry.value, entry.users, entry.bytes, entry.pinned)),
});

export async function getModelInfo(
  deps: AdminDeps,
  request: inference.GetModelInfoRequest,
): Promise<inference.ModelInfo> {
  const record = await deps.bases.named(request.base, 'base');
  const base = deps.bases.peek(record);
  if (base === undefined) throw notFound(`${record.name} in memory`);
  return {
    baseModel: record.name,
    baseDigest: record.digest,
    tokenizerDigest: base.tokenizer.digest,
    quantization: quantizationName(record.quantization),
    contextLength: base.model.info.contextLength,
    vocabularySize: base.model.info.vocabSize,
    defaultSampling: { ...defaultSampling, maxTokens: defaultMaxTokens },
    residentBytes: base.model.residentBytes,
    device: base.device,
  };
}

export function getLoad(deps: AdminDeps): inference.Load {
  const { used, total } = deps.kvBlocks();
  return {
    runningRequestCount: deps.admission.running,
    waitingRequestCount: deps.admission.waiting,
    kvCacheUsage: total === 0 ? 0 : used / total,
    loadedAdapterCount: deps.adapters.resident.entries().length,
    tokensPerSecond: deps.tokensPerSecond(),
    usedKvBlockCount: used,
    kvBlockCount: total,
    residentMemoryBytes: process.memoryUsage.rss(),
  };
}
