import { dataset, inference, lifecycle, longrunning, model, openInference, trainer } from '@medmesh/proto';
import {
  type Client,
  type ClientTls,
  createClient as createRpcClient,
  Metadata,
  openChannel,
  type ServiceDefinition,
} from '@medmesh/rpc';
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
  /** Sent as `Authorization: Bearer …`, for a gateway that asks for keys. Over anything but loopback, use it with `tls`. */
  apiKey?: string | undefined;
  /** Without it the connection is in clear. */
  tls?: ClientTls | undefined;
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
    readonly tokenizer: Client<dataset.TokenizerServiceDefinition>;
    readonly trainer: Client<trainer.TrainerServiceDefinition>;
    readonly inference: Client<inference.InferenceServiceDefinition>;
    readonly inferenceAdmin: Client<inference.InferenceAdminServiceDefinition>;
    readonly openInference: Client<openInference.GRPCInferenceServiceDefinition>;
  };
  close(): void;
};

/** Opens a connection to a gateway. It is made lazily: an unreachable one shows at the first call. */
export function connect(options: ConnectOptions = {}): MedmeshClient {
  const address = options.address ?? '127.0.0.1:7400';
  const project = options.project ?? 'default';
  const parent = `projects/${project}`;
  const channel = openChannel(address, { tls: options.tls });
  const metadata = options.apiKey === undefined ? undefined : Metadata({ authorization: `Bearer ${options.apiKey}` });
  const createClient = <D extends ServiceDefinition>(definition: D) =>
    createRpcClient(definition, channel, { metadata });
  const operations = createClient(longrunning.OperationsDefinition);
  return {
    address,
    project,
    models: createModelsClient(createClient(model.ModelServiceDefinition), operations, parent),
    datasets: createDatasetsClient(createClient(dataset.DatasetServiceDefinition), operations, parent),
    jobs: createJobsClient(createClient(lifecycle.FineTuningServiceDefinition), parent),
    adapters: createAdaptersClient(createClient(lifecycle.AdapterServiceDefinition), operations, parent),
    inference: createInferenceClient(createClient(inference.InferenceServiceDefinition)),
    raw: {
      operations,
      tokenizer: createClient(dataset.TokenizerServiceDefinition),
      trainer: createClient(trainer.TrainerServiceDefinition),
      inference: createClient(inference.InferenceServiceDefinition),
      inferenceAdmin: createClient(inference.InferenceAdminServiceDefinition),
      openInference: createClient(openInference.GRPCInferenceServiceDefinition),
    },
    close: () => channel.close(),
  };
}
