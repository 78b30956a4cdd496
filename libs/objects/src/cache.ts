import { rmSync } from 'node:fs';
import {
  link,
  mkdir,
  open as openFile,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import { createCacheOwner } from './cache-owner.ts';
import { checkDigest, corrupt } from './digest.ts';
import { checkManifest, type Manifest } from './manifest.ts';
import type { ObjectStore } from './object-store.ts';
import { createSharedWork } from './shared-work.ts';
import { untilAborted } from './source.ts';
import { createVerifiedMarks } from './verified.ts';

export type CacheOptions = {
  /** A folder of the cache's own. Several processes may share it. */
  readonly dir: string;
  /** Most bytes of blobs that are kept or being fetched. */
  readonly maxBytes: number;
  readonly store: ObjectStore;
};

/** A manifest laid out as files. */
export type Materialized = {
  /** Holds the manifest's files at their paths, read-only. They stay until `release`, whatever happens to the cache. */
  readonly dir: string;
  release: () => void;
};

/**
 * Blobs of an object store on this machine's disk. The least recently used go when space is needed; what somebody has materialized never does.
 * With a file store nothing is copied: the files are links to the store's own.
 */
export interface Cache {
  /**
   * Fetches what is missing, verifies what was not verified before, and lays the files out.
   * @throws Failure `data_loss` ARTIFACT_CORRUPT if the store itself holds damaged content, `resource_exhausted` CACHE_FULL if it cannot fit,
   *   `not_found` BLOB_NOT_FOUND, `invalid_argument` MANIFEST_INVALID.
   */
  materialize(manifest: Manifest, signal?: AbortSignal): Promise<Materialized>;
  /** Releases everything that this process holds. */
  close(): Promise<void>;
}

type Kept = { hex: string; path: string; sizeBytes: number; pinned: boolean };

const fetchesInFlight = 3;
/** A blob may be evicted by another process between its arrival and its use. */
const mostTries = 5;
const roomPatienceMs = 3_000;
const pollMs = 50;
const emptyClaimMs = 10_000;

/** Of this process, whichever cache they are in. */
let names = 0;

const isCode = (error: unknown, ...codes: string[]): boolean =>
  error instanceof Error && 'code' in error && codes.includes(String(error.code));

export function openCache(o: CacheOptions): Cache {
  const { store, maxBytes } = o;
  const root = resolve(o.dir);
  const folders = {
    blobs: join(root, 'blobs'),
    incoming: join(root, 'incoming'),
    views: join(root, 'views'),
    verified: join(root, 'verified'),
    claims: join(root, 'claims'),
  };
  const owner = createCacheOwner(join(root, 'owners'));
  const marks = createVerifiedMarks(folders.verified, owner.id);
  const views = new Set<string>();
  const shareFetch = createSharedWork();
  const ownName = (): string => `${owner.id}.${++names}`;

  let opened: Promise<void> | undefined;
  async function open(): Promise<void> {
    try {
      for (const folder of Object.values(folders)) await mkdir(folder, { recursive: true });
      await owner.open();
      await owner.removeOrphans(folders.views);
      await owner.removeOrphans(folders.incoming);
    } catch (cause) {
      opened = undefined;
      const code = cause instanceof Error && 'code' in cause ? String(cause.code) : 'unknown error';
      throw new Failure(
        'failed_precondition',
        `cannot use ${root} as cache (${code}); make CACHE_DIR a folder that this process may write to`,
        {
          reason: 'CACHE_FOLDER_UNUSABLE',
          cause,
        },
      );
    }
  }

  const pathOf = (hex: string): string => join(folders.blobs, hex.slice(0, 2), hex);

  async function materialize(manifest: Manifest, signal?: AbortSignal): Promise<Materialized> {
    const { files } = checkManifest(manifest);
    opened ??= open();
    await opened;
    const dir = join(folders.views, ownName());
    await mkdir(dir);
    views.add(dir);
    const release = (): void => {
      if (views.delete(dir)) rmSync(dir, { recursive: true, force: true });
    };
    try {
      checkFits(files);
      await eachOf(files, fetchesInFlight, async ({ path, digest, sizeBytes }) => {
        signal?.throwIfAborted();
        const target = join(dir, path);
        await mkdir(dirname(target), { recursive: true });
        if (store.blobPath === undefined) await linkCached(checkDigest(digest), sizeBytes, target, signal);
        else await linkStored(digest, store.blobPath(digest), target, signal);
      });
      return { dir, release };
    } catch (error) {
      release();
      throw error;
    }
  }

  /** From a file store: a link to its own file. */
  async function linkStored(
    digest: string,
    path: string,
    target: string,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    try {
      await marks.check(digest, path, signal);
    } catch (error) {
      if (!isCode(error, 'ENOENT')) throw error;
      throw new Failure('not_found', `there is no blob ${digest}`, {
        reason: 'BLOB_NOT_FOUND',
        metadata: { digest },
        cause: error,
      });
    }
    try {
      await link(path, target);
    } catch (error) {
      // Another file system, or one that links badly.
      if (!isCode(error, 'EXDEV', 'EPERM', 'EMLINK', 'ENOTSUP')) throw error;
      await symlink(path, target);
    }
  }

  /** From elsewhere: a hard link to the cached copy. The link is what pins it: as long as it exists, so does the content. */
  async function linkCached(
    digest: string,
    sizeBytes: number,
    target: string,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      await obtain(digest, sizeBytes, signal);
      try {
        await link(pathOf(digest.slice('sha256:'.length)), target);
        return;
      } catch (error) {
        if (!isCode(error, 'ENOENT') || attempt === mostTries) throw error;
      }
    }
  }

  /** Makes sure that a verified copy of a blob is in the cache. */
  async function obtain(digest: string, sizeBytes: number, signal: AbortSignal | undefined): Promise<void> {
    const hex = digest.slice('sha256:'.length);
    try {
      await marks.check(digest, pathOf(hex), signal);
      return;
    } catch (error) {
      const damaged = error instanceof Failure && error.reason === 'ARTIFACT_CORRUPT';
      if (!damaged && !isCode(error, 'ENOENT')) throw error;
      if (damaged) await rm(pathOf(hex), { force: true });
    }
    await shareFetch(hex, signal, (stopped) => fetchBlob(digest, sizeBytes, stopped));
  }

  async function fetchBlob(digest: string, sizeBytes: number, signal: AbortSignal): Promise<void> {
    const hex = digest.slice('sha256:'.length);
    const free = await claim(hex, signal);
    const incoming = join(folders.incoming, `${hex}.${ownName()}`);
    try {
      // Another process may have brought it while this one waited for the claim.
      if (await exists(pathOf(hex))) return;
      await receive(incoming, digest, sizeBytes, signal);
      await mkdir(dirname(pathOf(hex)), { recursive: true });
      await rename(incoming, pathOf(hex));
      await marks.mark(digest, pathOf(hex));
    } finally {
      await rm(incoming, { force: true });
      await free();
    }
  }

  /**
   * Lets one process at a time fetch a blob: two copies on their way could fill the cache and wait for each other. Nothing but room depends on it; should
   * two processes take over the claim of a dead one at the same moment, both fetch, and either copy is right.
   */
  async function claim(hex: string, signal: AbortSignal): Promise<() => Promise<void>> {
    const path = join(folders.claims, hex);
    for (;;) {
      signal.throwIfAborted();
      try {
        await writeFile(path, owner.id, { flag: 'wx' });
        return () => rm(path, { force: true });
      } catch (error) {
        if (!isCode(error, 'EEXIST')) throw error;
      }
      if (await isAbandoned(path)) await rm(path, { force: true });
      else await pause();
    }
  }

  async function isAbandoned(claimPath: string): Promise<boolean> {
    const holder = await readFile(claimPath, 'utf8').catch(() => undefined);
    if (holder === undefined) return false;
    if (holder !== '') return !(await owner.isAlive(holder));
    // Between its making and its filling lies an instant, unless the process died in it.
    const age = await stat(claimPath).then(
      (info) => Date.now() - info.mtimeMs,
      () => 0,
    );
    return age > emptyClaimMs;
  }

  async function receive(path: string, digest: string, sizeBytes: number, signal: AbortSignal): Promise<void> {
    const file = await openFile(path, 'wx', 0o600);
    try {
      // Full size from the start, without taking the space yet: that is how other processes see what is spoken for.
      await file.truncate(sizeBytes);
      await makeRoom(sizeBytes, signal);
      let received = 0;
      // A store that hangs must not keep the claim of who gave up.
      for await (const piece of untilAborted(store.readBlob(digest, { signal }), signal)) {
        if (received + piece.length > sizeBytes) throw corrupt(digest, `longer than ${sizeBytes} bytes`);
        for (let at = 0; at < piece.length; )
          at += (await file.write(piece, at, piece.length - at, received + at)).bytesWritten;
        received += piece.length;
      }
      // The stream was verified, so it would be the manifest that is wrong.
      if (received < sizeBytes) throw corrupt(digest, `${received} bytes long instead of ${sizeBytes}`);
      await file.chmod(0o444);
      await file.sync();
    } finally {
      await file.close();
    }
  }

  function checkFits(files: Manifest['files']): void {
    if (store.blobPath !== undefined) return;
    const sizes = new Map(files.map((file) => [file.digest, file.sizeBytes]));
    const neededBytes = [...sizes.values()].reduce((sum, size) => sum + size, 0);
    if (neededBytes > maxBytes) throw full(neededBytes, 0);
  }

  const full = (neededBytes: number, pinnedBytes: number): Failure =>
    new Failure(
      'resource_exhausted',
      `the cache holds at most ${maxBytes} bytes; ${pinnedBytes} of them are in use and ${neededBytes} more are needed: raise CACHE_MAX_BYTES`,
      { reason: 'CACHE_FULL', metadata: { max_bytes: String(maxBytes), needed_bytes: String(neededBytes) } },
    );

  /** Evicts until what is kept and what is on its way fit. Waits a little for others' fetches that may fail or be released. */
  async function makeRoom(neededBytes: number, signal: AbortSignal): Promise<void> {
    // Of two processes that wait for each other, one gives up first.
    const patienceMs = roomPatienceMs * (1 + Math.random());
    const started = performance.now();
    for (;;) {
      const kept = await listKept();
      let usedBytes = (await incomingBytes()) + kept.reduce((sum, blob) => sum + blob.sizeBytes, 0);
      if (usedBytes > maxBytes) await owner.removeOrphans(folders.views);
      for (const blob of await leastRecentlyUsed(kept)) {
        if (usedBytes <= maxBytes) return;
        if (await evict(blob)) usedBytes -= blob.sizeBytes;
      }
      if (usedBytes <= maxBytes) return;
      if (performance.now() - started > patienceMs) {
        throw full(
          neededBytes,
          kept.filter((blob) => blob.pinned).reduce((sum, blob) => sum + blob.sizeBytes, 0),
        );
      }
      signal.throwIfAborted();
      await pause();
    }
  }

  async function incomingBytes(): Promise<number> {
    await owner.removeOrphans(folders.incoming);
    let sum = 0;
    for (const name of await readdir(folders.incoming)) {
      sum += (await stat(join(folders.incoming, name)).catch(() => undefined))?.size ?? 0;
    }
    return sum;
  }

  async function listKept(): Promise<Kept[]> {
    const kept: Kept[] = [];
    for (const shard of await readdir(folders.blobs)) {
      for (const hex of await readdir(join(folders.blobs, shard))) {
        const path = join(folders.blobs, shard, hex);
        const info = await stat(path).catch(() => undefined);
        if (info !== undefined) kept.push({ hex, path, sizeBytes: info.size, pinned: info.nlink > 1 });
      }
    }
    return kept;
  }

  async function leastRecentlyUsed(kept: Kept[]): Promise<Kept[]> {
    const dated = await Promise.all(
      kept.filter((blob) => !blob.pinned).map(async (blob) => ({ blob, usedMs: await marks.lastUsedMs(blob.hex) })),
    );
    return dated.sort((a, b) => a.usedMs - b.usedMs).map(({ blob }) => blob);
  }

  /** False if somebody has taken it in use meanwhile. Should that happen between the look and the removal, their link keeps the content all the same. */
  async function evict(blob: Kept): Promise<boolean> {
    const info = await stat(blob.path).catch(() => undefined);
    if (info === undefined) return true;
    if (info.nlink > 1) return false;
    await rm(blob.path, { force: true });
    await marks.forget(blob.hex);
    return true;
  }

  return {
    materialize,
    async close() {
      for (const dir of views) rmSync(dir, { recursive: true, force: true });
      views.clear();
      if (opened !== undefined) await opened.then(() => owner.close()).catch(() => undefined);
    },
  };
}

const pause = (): Promise<void> => sleep(pollMs * (0.5 + Math.random()));

const exists = async (path: string): Promise<boolean> => (await stat(path).catch(() => undefined)) !== undefined;

/** Calls `act` for every item, at most `width` at once. The first error ends it, once the calls under way have ended. */
async function eachOf<T>(items: readonly T[], width: number, act: (item: T) => Promise<void>): Promise<void> {
  let at = 0;
  let failed: { error: unknown } | undefined;
  const lane = async (): Promise<void> => {
    while (at < items.length && failed === undefined) {
      const item = items[at]!;
      at += 1;
      try {
        await act(item);
      } catch (error) {
        failed ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, lane));
  if (failed !== undefined) throw failed.error;
}
