export { type CommandContext } from './context.ts';
export { type Mesh, type MeshOptions, type MeshRecord, readMesh, startMesh } from './mesh/mesh.ts';
export { defaultStateDir, type MeshPaths, meshPaths, repositoryRoot } from './mesh/paths.ts';
export { formatBytes, formatSeconds, reportError, table } from './output.ts';
export { createProgressBar, type ProgressBar } from './progress.ts';
export { createProgram } from './program.ts';
