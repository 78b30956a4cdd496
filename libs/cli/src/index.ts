export type { CommandContext } from './context.ts';
export * from './mesh/index.ts';
export { formatBytes, formatSeconds, reportError, table } from './output.ts';
export { createProgram } from './program.ts';
export { createProgressBar, type ProgressBar } from './progress.ts';
