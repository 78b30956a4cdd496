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
  HTTP_PORT: z.coerce
    .number()
    .int()
    .min(0)
    .max(65_535)
    .default(0)
    .describe('port of the OpenAI-compatible HTTP API; 0 takes a free one'),
  API_KEYS_FILE: z
    .string()
    .min(1)
    .optional()
    .describe(
      'JSON file of callers, by digest of their keys; without it everybody is let in. It is read again when it changes',
    ),
  TLS_CERT_FILE: z
    .string()
    .min(1)
    .optional()
    .describe('PEM certificate of gRPC and HTTP; without it they speak in clear'),
  TLS_PRIVATE_FILE: z.string().min(1).optional().describe('PEM key of the certificate'),
  TLS_CLIENT_CA_FILE: z
    .string()
    .min(1)
    .optional()
    .describe('PEM authority of clients; with it only clients with its certificates are let in'),
  TLS_RELOAD_MS: z.coerce
    .number()
    .int()
    .min(10)
    .default(60_000)
    .describe('how often the TLS files are looked at for renewed ones, in milliseconds'),
  PROJECT: z
    .string()
    .min(1)
    .default('default')
    .describe('project whose adapters and models HTTP callers name without a prefix'),
  LIFECYCLE_ADDR: address('lifecycle'),
  FORMATTER_ADDR: address('formatter'),
  QUANTIZER_ADDR: address('quantizer'),
  TRAINER_ADDR: address('trainer'),
  INFERENCE_ADDR: address('inference'),
});

export type GatewayConfig = z.infer<typeof configSchema>;
