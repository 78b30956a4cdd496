export { type Mesh, type MeshOptions, type MeshRecord, readMesh, startMesh, stopMesh } from './mesh.ts';
export { defaultStateDir, type MeshPaths, meshPaths, repositoryRoot } from './paths.ts';
