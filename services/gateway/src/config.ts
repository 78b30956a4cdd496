import { commonConfig } from '@medmesh/config';
import { z } from 'zod';

const address = (service: string) =>
  z
    .string()
    .regex(/^[^\s/]+:\d+$/, 'use host:port')
    .describe(`where ${service} listens, host:port`);

export const configSchema = z.object({
  ...commonConfig,
  // It forwards and keeps nothing: a store may be named, and is not used.
  OBJECT_STORE_URL: commonConfig.OBJECT_STORE_URL.optional(),
  GRPC_PORT: z.coerce
    .number()
    .int()
    .min(0)
    .max(65_535)
    .default(7400)
    .describe('port of the gateway; 0 takes a free one'),
  LIFECYCLE_ADDR: address('lifecycle'),
  FORMATTER_ADDR: address('formatter'),
  QUANTIZER_ADDR: address('quantizer'),
  TRAINER_ADDR: address('trainer'),
  INFERENCE_ADDR: address('inference'),
});

export type GatewayConfig = z.infer<typeof configSchema>;
