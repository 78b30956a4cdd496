import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import { connectNats, createPublisher, ensureStreams, type Publisher } from '@medmesh/events';
import type { Logger } from '@medmesh/log';
import { type Cache, type ObjectStore, openCache, openObjectStore } from '@medmesh/objects';
import { openRecords, type Records } from '@medmesh/records';
import type { NatsConnection } from '@nats-io/transport-node';
import type { CommonConfig } from './service-context.ts';

const firstPauseMs = 250;
const longestPauseMs = 5_000;

/** Connects to NATS, waiting for it as long as it takes, and makes the streams. */
export async function openNats(
  name: string,
  config: CommonConfig,
  log: Logger,
  signal: AbortSignal,
): Promise<{ nc: NatsConnection; records: Records; publisher: Publisher }> {
  const nc = await connectNats({ url: config.NATS_URL, name, log, signal });
  try {
    const replicas = config.NATS_REPLICAS;
    await ensureStreams(nc, { replicas });
    return { nc, records: await openRecords(nc, { replicas }), publisher: createPublisher(nc, { name }) };
  } catch (error) {
    await nc.close();
    throw error;
  }
}

/** Opens the object store, waiting for it as long as it takes, and the cache before it. */
export async function openStorage(
  config: CommonConfig,
  log: Logger,
  signal: AbortSignal,
): Promise<{ store: ObjectStore; cache: Cache }> {
  const store = await openStore(config, log, signal);
  log.info({ store: store.url }, `opened the object store ${store.url}`);
  return { store, cache: openCache({ dir: config.CACHE_DIR, maxBytes: config.CACHE_MAX_BYTES, store }) };
}

async function openStore(config: CommonConfig, log: Logger, signal: AbortSignal): Promise<ObjectStore> {
  const options = {
    url: config.OBJECT_STORE_URL,
    accessKey: config.S3_ACCESS_KEY,
    secretKey: config.S3_SECRET_KEY,
    uriRoots: config.URI_ROOTS.split(',')
      .map((root) => root.trim())
      .filter((root) => root !== ''),
    signal,
    patienceMs: 0,
  };
  for (let attempt = 1, pauseMs = firstPauseMs; ; attempt += 1, pauseMs = Math.min(2 * pauseMs, longestPauseMs)) {
    try {
      return await openObjectStore(options);
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof Failure) || error.code !== 'unavailable') throw error;
      log.warn(
        { attempt, retry_in_ms: pauseMs, err: error },
        `${error.message}. Trying again in ${(pauseMs / 1000).toFixed(1)} s`,
      );
    }
    await sleep(pauseMs, undefined, { signal }).catch(() => signal.throwIfAborted());
  }
}
