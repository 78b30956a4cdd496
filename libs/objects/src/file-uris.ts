import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { mkdir, open, readdir, readlink, realpath, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, relative, sep } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Failure } from '@medmesh/errors';
import { checkExpected, digestOf, newHash } from './digest.ts';
import { writeSynced } from './file-store.ts';
import type { PutOptions, ReadOptions, UriEntry, UriHome, WaitOptions } from './object-store.ts';
import { type BlobSource, checkRange, pieceBytes, piecesOf } from './source.ts';

const notAllowed = (uri: string, roots: readonly string[]): Failure =>
  new Failure(
    'permission_denied',
    `${shown(uri)} is outside the folders this process may use: ${roots.join(', ') || 'none'}`,
    {
      reason: 'URI_NOT_ALLOWED',
    },
  );

const notThere = (uri: string): Failure =>
  new Failure('not_found', `${shown(uri)} does not exist`, { reason: 'URI_NOT_FOUND' });

const shown = (uri: string): string => JSON.stringify(uri.length > 200 ? `${uri.slice(0, 200)}…` : uri);

const codeOf = (error: unknown): unknown => (error instanceof Error && 'code' in error ? error.code : undefined);

/**
 * Files below `roots` (absolute folders) as `file://` URIs. A path counts by where it really leads: a symbolic link may point to another place within the
 * roots, never out of them.
 */
export function createFileUris(roots: readonly string[]): UriHome {
  function pathOf(uri: string): string {
    let path: string;
    try {
      path = fileURLToPath(uri);
    } catch {
      throw new Failure('invalid_argument', `${shown(uri)} is not a file URI; write file:///absolute/path`, {
        reason: 'URI_INVALID',
      });
    }
    if (path.includes('\0'))
      throw new Failure('invalid_argument', 'a file URI holds a NUL character', { reason: 'URI_INVALID' });
    return path;
  }

  async function isInside(real: string): Promise<boolean> {
    for (const root of roots) {
      const realRoot = await realpath(root).catch(() => undefined);
      if (
        realRoot !== undefined &&
        (real === realRoot || real.startsWith(realRoot.endsWith(sep) ? realRoot : realRoot + sep))
      )
        return true;
    }
    return false;
  }

  /** Where an existing file or folder really is. */
  async function resolveExisting(uri: string): Promise<string> {
    const path = pathOf(uri);
    let real: string;
    try {
      real = await realpath(path);
    } catch (error) {
      if (codeOf(error) !== 'ENOENT' && codeOf(error) !== 'ENOTDIR') throw error;
      // Whether something exists outside is nobody's business either.
      throw (await isInside(await realAncestor(path))) ? notThere(uri) : notAllowed(uri, roots);
    }
    if (!(await isInside(real))) throw notAllowed(uri, roots);
    return real;
  }

  /** Opens a file and makes sure that what was opened is what was checked: the path may have changed in between. */
  async function openFile(uri: string) {
    const real = await resolveExisting(uri);
    const file = await open(real, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    try {
      const info = await file.stat();
      if (!info.isFile())
        throw new Failure('invalid_argument', `${shown(uri)} is not a file`, { reason: 'URI_INVALID' });
      if (!(await isInside(await readlink(`/proc/self/fd/${file.fd}`)))) throw notAllowed(uri, roots);
      return { file, sizeBytes: info.size };
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  async function* readUri(uri: string, o: ReadOptions = {}): AsyncGenerator<Uint8Array> {
    checkRange(o);
    const { file } = await openFile(uri);
    try {
      const end = o.length === undefined ? Number.POSITIVE_INFINITY : (o.offset ?? 0) + o.length;
      for (let at = o.offset ?? 0; at < end; ) {
        o.signal?.throwIfAborted();
        const buffer = Buffer.allocUnsafe(Math.min(pieceBytes, end - at));
        const { bytesRead } = await file.read(buffer, 0, buffer.length, at);
        if (bytesRead === 0) return;
        at += bytesRead;
        yield buffer.subarray(0, bytesRead);
      }
    } finally {
      await file.close();
    }
  }

  async function uriSize(uri: string): Promise<number> {
    const { file, sizeBytes } = await openFile(uri);
    await file.close();
    return sizeBytes;
  }

  async function* listUri(prefix: string, o: WaitOptions = {}): AsyncGenerator<UriEntry> {
    const top = await resolveExisting(prefix);
    const info = await stat(top);
    if (info.isFile()) {
      yield { uri: prefix, path: basename(pathOf(prefix)), sizeBytes: info.size };
      return;
    }
    yield* walk(top, top, [top], o.signal);
  }

  async function* walk(
    top: string,
    folder: string,
    above: string[],
    signal: AbortSignal | undefined,
  ): AsyncGenerator<UriEntry> {
    for (const name of (await readdir(folder)).sort()) {
      signal?.throwIfAborted();
      const path = join(folder, name);
      const uri = pathToFileURL(path).href;
      const real = await resolveExisting(uri);
      const info = await stat(real);
      if (info.isFile()) yield { uri, path: relative(top, path), sizeBytes: info.size };
      // A link to a folder above would go round for ever.
      else if (info.isDirectory() && !above.includes(real)) yield* walk(top, path, [...above, real], signal);
    }
  }

  async function writeUri(uri: string, source: BlobSource, o: PutOptions = {}): Promise<{ sizeBytes: number }> {
    const path = pathOf(uri);
    if (uri.endsWith('/'))
      throw new Failure('invalid_argument', `${shown(uri)} names a folder; name a file`, { reason: 'URI_INVALID' });
    const parent = dirname(path);
    if (!(await isInside(await realAncestor(parent)))) throw notAllowed(uri, roots);
    await mkdir(parent, { recursive: true });
    const folder = await realpath(parent);
    if (!(await isInside(folder))) throw notAllowed(uri, roots);
    const temporary = join(folder, `.${randomUUID()}.tmp`);
    try {
      const hash = newHash();
      const sizeBytes = await writeSynced(temporary, 0o644, piecesOf(source, o.signal), (piece, written) => {
        hash.update(piece);
        o.onProgress?.(written);
      });
      checkExpected(o.expectedDigest, digestOf(hash));
      await rename(temporary, join(folder, basename(path)));
      return { sizeBytes };
    } catch (error) {
      await rm(temporary, { force: true });
      throw error;
    }
  }

  async function removeUri(uri: string): Promise<void> {
    const path = pathOf(uri);
    if (!(await isInside(await realAncestor(dirname(path))))) throw notAllowed(uri, roots);
    // By its name in the real folder: of a symbolic link the link itself goes, never what it leads to.
    const folder = await realpath(dirname(path)).catch(() => undefined);
    if (folder === undefined) return;
    if (!(await isInside(folder))) throw notAllowed(uri, roots);
    await rm(join(folder, basename(path)), { force: true });
  }

  return { readUri, uriSize, listUri, writeUri, removeUri };
}

/** The real path of the nearest folder above (or at) `path` that exists. */
async function realAncestor(path: string): Promise<string> {
  for (let at = path; ; at = dirname(at)) {
    try {
      return await realpath(at);
    } catch (error) {
      if (at === dirname(at)) throw error;
    }
  }
}
