export { type Cache, type CacheOptions, type Materialized, openCache } from './cache.ts';
export { collectFolder } from './collect-folder.ts';
export { blobKey, checkDigest, type Digest, isDigest } from './digest.ts';
export { type ExportOptions, exportFiles } from './export-files.ts';
export { checkManifest, checkPath, encodeManifest, type Manifest, type ManifestFile } from './manifest.ts';
export type { ObjectStore, PutOptions, ReadOptions, StoredBlob, UriEntry, WaitOptions } from './object-store.ts';
export { type ObjectStoreOptions, openObjectStore } from './open-object-store.ts';
export type { BlobSource } from './source.ts';
