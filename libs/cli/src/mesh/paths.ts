import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The repository's folder. */
export const repositoryRoot = fileURLToPath(new URL('../../../..', import.meta.url)).replace(/\/$/, '');

/** Where a mesh on this machine keeps everything. */
export type MeshPaths = {
  state: string;
  nats: string;
  objects: string;
  cache: string;
  staging: string;
  logs: string;
  run: string;
  record: string;
};

export const meshPaths = (state: string): MeshPaths => ({
  state,
  nats: join(state, 'nats'),
  objects: join(state, 'objects'),
  cache: join(state, 'cache'),
  staging: join(state, 'staging'),
  logs: join(state, 'logs'),
  run: join(state, 'run'),
  record: join(state, 'run', 'mesh.json'),
});

/** The default: `.medmesh` in the repository. */
export const defaultStateDir = join(repositoryRoot, '.medmesh');
