import { dataset, inference, lifecycle, longrunning, model, openInference, trainer } from '@medmesh/proto';
import type { GatewayConfig } from './config.ts';

type Backend = Extract<keyof GatewayConfig, `${string}_ADDR`>;

/** Which process answers which service. */
export const routes = {
  LIFECYCLE_ADDR: [
    lifecycle.FineTuningServiceDefinition,
    lifecycle.AdapterServiceDefinition,
    longrunning.OperationsDefinition,
  ],
  FORMATTER_ADDR: [dataset.DatasetServiceDefinition, dataset.TokenizerServiceDefinition],
  QUANTIZER_ADDR: [model.ModelServiceDefinition],
  TRAINER_ADDR: [trainer.TrainerServiceDefinition],
  INFERENCE_ADDR: [
    inference.InferenceServiceDefinition,
    inference.InferenceAdminServiceDefinition,
    openInference.GRPCInferenceServiceDefinition,
  ],
} as const satisfies Record<Backend, readonly unknown[]>;

/** The settings that name a backend. */
export const backends = Object.keys(routes) as Backend[];
