export { type AdaptersClient, createAdaptersClient } from './adapters.ts';
export { type ConnectOptions, connect, type MedmeshClient } from './connect.ts';
export { createDatasetsClient, type DatasetsClient } from './datasets.ts';
export {
  type Answer,
  type AskEvent,
  type AskInput,
  type AskOptions,
  createInferenceClient,
  type InferenceClient,
} from './inference.ts';
export { createJobsClient, type JobsClient } from './jobs.ts';
export { createModelsClient, type ModelsClient } from './models.ts';
export { type OperationProgress, type OperationsClient, type WaitOptions, waitForOperation } from './operations.ts';
