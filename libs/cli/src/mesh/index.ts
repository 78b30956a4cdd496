export { type Mesh, type MeshOptions, type MeshRecord, readMesh, startMesh, stopProcesses } from './mesh.ts';
export { defaultStateDir, type MeshPaths, meshPaths, repositoryRoot } from './paths.ts';
