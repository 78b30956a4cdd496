import { Failure } from '@medmesh/errors';
import { checkDigest } from './digest.ts';

/** One file of an artifact: where it belongs and which blob it is. */
export type ManifestFile = { path: string; digest: string; sizeBytes: number };

/**
 * What an artifact consists of. Its canonical JSON is itself a blob, and that blob's digest is the artifact's digest.
 * Metadata holds names, counts and digests, never patient text.
 */
export type Manifest = {
  kind: 'model' | 'dataset' | 'checkpoint' | 'adapter';
  files: ManifestFile[];
  metadata: Record<string, string>;
};

const kinds: readonly string[] = ['model', 'dataset', 'checkpoint', 'adapter'] satisfies Manifest['kind'][];

/** Bounds on what is read before it is trusted. */
export const largestManifestBytes = 16 * 1024 * 1024;
const mostFiles = 100_000;
const longestPathBytes = 1024;
const longestNameBytes = 255;

const invalid = (what: string): Failure =>
  new Failure('invalid_argument', `the manifest is refused: ${what}`, { reason: 'MANIFEST_INVALID' });

/**
 * Refuses a path that could leave the folder a manifest is laid out in, or that not every file system can hold.
 * @throws Failure `invalid_argument` MANIFEST_INVALID.
 */
export function checkPath(path: unknown): string {
  const shown = JSON.stringify(String(path).slice(0, 80));
  if (typeof path !== 'string' || path === '') throw invalid('a file has no path');
  if (path.startsWith('/')) throw invalid(`the path ${shown} is absolute`);
  if (path.includes('\\')) throw invalid(`the path ${shown} holds a backslash`);
  if (/\p{Cc}/u.test(path)) throw invalid(`the path ${shown} holds a control character`);
  if (Buffer.byteLength(path) > longestPathBytes) throw invalid(`a path is longer than ${longestPathBytes} bytes`);
  for (const name of path.split('/')) {
    if (name === '' || name === '.' || name === '..')
      throw invalid(`the path ${shown} is not plain: use names separated by single slashes`);
    if (Buffer.byteLength(name) > longestNameBytes)
      throw invalid(`a file name is longer than ${longestNameBytes} bytes`);
  }
  return path;
}

/** Checks a manifest of unknown origin and returns it in canonical order. Failure `invalid_argument` MANIFEST_INVALID. */
export function checkManifest(value: unknown): Manifest {
  if (typeof value !== 'object' || value === null) throw invalid('it is not an object');
  const { kind, files, metadata, ...rest } = value as Record<string, unknown>;
  if (Object.keys(rest).length > 0) throw invalid(`it has unknown fields: ${Object.keys(rest).slice(0, 5).join(', ')}`);
  if (typeof kind !== 'string' || !kinds.includes(kind)) throw invalid(`its kind must be one of ${kinds.join(', ')}`);
  if (!Array.isArray(files)) throw invalid('it has no list of files');
  if (files.length > mostFiles) throw invalid(`it has ${files.length} files; at most ${mostFiles} are allowed`);
  if (typeof metadata !== 'object' || metadata === null || Array.isArray(metadata))
    throw invalid('its metadata is not an object');
  const texts: [string, string][] = Object.entries(metadata).map(([key, text]) => {
    if (typeof text !== 'string') throw invalid(`its metadata ${JSON.stringify(key.slice(0, 80))} is not text`);
    return [key, text];
  });
  const checked = files.map(checkFile).sort((a, b) => (a.path < b.path ? -1 : 1));
  checkDistinct(checked);
  return { kind: kind as Manifest['kind'], files: checked, metadata: Object.fromEntries(texts) };
}

function checkFile(value: unknown): ManifestFile {
  if (typeof value !== 'object' || value === null) throw invalid('a file is not an object');
  const { path, digest, sizeBytes } = value as Partial<Record<string, unknown>>;
  const checkedPath = checkPath(path);
  if (typeof digest !== 'string') throw invalid(`the file ${checkedPath} has no digest`);
  if (typeof sizeBytes !== 'number' || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
    throw invalid(`the size of ${checkedPath} is not a whole number from 0 up`);
  }
  return { path: checkedPath, digest: checkDigest(digest), sizeBytes };
}

/** No path twice, and none both a file and a folder. */
function checkDistinct(files: ManifestFile[]): void {
  const paths = new Set(files.map((file) => file.path));
  if (paths.size < files.length) throw invalid('a path occurs twice');
  for (const path of paths) {
    for (let slash = path.indexOf('/'); slash >= 0; slash = path.indexOf('/', slash + 1)) {
      if (paths.has(path.slice(0, slash))) throw invalid(`${path.slice(0, slash)} is both a file and a folder`);
    }
  }
}

/** The one encoding of a manifest: keys sorted, files sorted by path, no white space. Equal manifests give equal bytes. */
export function encodeManifest(manifest: Manifest): Uint8Array {
  const { kind, files, metadata } = checkManifest(manifest);
  const sorted = Object.fromEntries(Object.entries(metadata).sort(([a], [b]) => (a < b ? -1 : 1)));
  const json = JSON.stringify({
    files: files.map(({ digest, path, sizeBytes }) => ({ digest, path, sizeBytes })),
    kind,
    metadata: sorted,
  });
  return Buffer.from(json);
}

/** The manifest in a blob. Failure `data_loss` MANIFEST_INVALID if it is none. */
export function decodeManifest(digest: string, bytes: Uint8Array): Manifest {
  try {
    return checkManifest(JSON.parse(Buffer.from(bytes).toString()));
  } catch (cause) {
    throw new Failure('data_loss', `the blob ${digest} is not a manifest`, { reason: 'MANIFEST_INVALID', cause });
  }
}
