export { runService, type ServiceOptions } from './run-service.ts';
export type { ServiceContext, Started } from './service-context.ts';
