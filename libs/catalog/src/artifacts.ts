import type { Manifest } from '@medmesh/objects';
import type { model } from '@medmesh/proto';

/** A manifest's files as the records list them. */
export const artifactFiles = (manifest: Manifest): model.ArtifactFile[] => manifest.files.map((file) => ({ ...file }));

/** The files of a record as a manifest, for reading them; `digest` of the record stays the manifest's identity. */
export const manifestOf = (kind: Manifest['kind'], files: readonly model.ArtifactFile[]): Manifest => ({
  kind,
  files: files.map((file) => ({ ...file })),
  metadata: {},
});
