import { dataset, inference, lifecycle, longrunning, model, trainer } from '@medmesh/proto';
import { createClient, openChannel } from '@medmesh/rpc';
import { type AdaptersClient, createAdaptersClient } from './adapters.ts';
import { createDatasetsClient, type DatasetsClient } from './datasets.ts';
import { createInferenceClient, type InferenceClient } from './inference.ts';
import { createJobsClient, type JobsClient } from './jobs.ts';
import { createModelsClient, type ModelsClient } from './models.ts';
import type { OperationsClient } from './operations.ts';

export type ConnectOptions = {
  /** The gateway's `host:port`. Default `127.0.0.1:7400`. */
  address?: string;
  /** The project that names are made in. Default `default`. */
  project?: string;
};

/** Everything medmesh does, typed. Every error is a Failure with a code and a reason. */
export type MedmeshClient = {
  readonly address: string;
  readonly project: string;
  readonly models: ModelsClient;
  readonly datasets: DatasetsClient;
  readonly jobs: JobsClient;
  readonly adapters: AdaptersClient;
  readonly inference: InferenceClient;
  /** The generated clients, for calls that the groups above do not wrap. */
  readonly raw: {
    readonly operations: OperationsClient;
    readonly tokenizer: ReturnType<typeof rawTokenizer>;
    readonly trainer: ReturnType<typeof rawTrainer>;
    readonly inference: ReturnType<typeof rawInference>;
    readonly inferenceAdmin: ReturnType<typeof rawAdmin>;
  };
  close(): void;
};

type Channel = ReturnType<typeof openChannel>;
const rawTokenizer = (channel: Channel) => createClient(dataset.TokenizerServiceDefinition, channel);
const rawTrainer = (channel: Channel) => createClient(trainer.TrainerServiceDefinition, channel);
const rawInference = (channel: Channel) => createClient(inference.InferenceServiceDefinition, channel);
const rawAdmin = (channel: Channel) => createClient(inference.InferenceAdminServiceDefinition, channel);

/** Opens a connection to a gateway. It is made lazily: an unreachable one shows at the first call. */
export function connect(options: ConnectOptions = {}): MedmeshClient {
  const address = options.address ?? '127.0.0.1:7400';
  const project = options.project ?? 'default';
  const parent = `projects/${project}`;
  const channel = openChannel(address);
  const operations = createClient(longrunning.OperationsDefinition, channel);
  return {
    address,
    project,
    models: createModelsClient(createClient(model.ModelServiceDefinition, channel), operations, parent),
    datasets: createDatasetsClient(createClient(dataset.DatasetServiceDefinition, channel), operations, parent),
    jobs: createJobsClient(createClient(lifecycle.FineTuningServiceDefinition, channel), parent),
    adapters: createAdaptersClient(createClient(lifecycle.AdapterServiceDefinition, channel), operations, parent),
    inference: createInferenceClient(createClient(inference.InferenceServiceDefinition, channel)),
    raw: {
      operations,
      tokenizer: rawTokenizer(channel),
      trainer: rawTrainer(channel),
      inference: rawInference(channel),
      inferenceAdmin: rawAdmin(channel),
    },
    close: () => channel.close(),
  };
}
