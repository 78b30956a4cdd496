export type { Packed } from './operation-record.ts';
export { createOperations, type Operations, type StartOperation } from './operations.ts';
export type { OperationHandler, RunningOperation } from './run-operations.ts';
export { runService, type ServiceOptions } from './run-service.ts';
export type { ServiceContext, Started } from './service-context.ts';
