export {
  createOperations,
  type OperationRun,
  type Operations,
  type Packed,
  type StartOperation,
} from './operations.ts';
export { runService, type ServiceOptions } from './run-service.ts';
export type { CommonConfig, ServiceContext, Started } from './service-context.ts';
