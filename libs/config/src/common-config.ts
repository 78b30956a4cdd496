import { z } from 'zod';

const port = (what: string) =>
  z.coerce.number().int().min(0).max(65_535).default(0).describe(`${what}; 0 takes a free one`);

/** `file:///directory` or `s3://bucket?endpoint=http://host:port&region=…`. */
const objectStoreUrl = z
  .string()
  .regex(
    /^(file:\/\/\/.|s3:\/\/[a-z0-9.-]+(\?|$))/,
    'write file:///directory or s3://bucket?endpoint=http://host:port',
  );

/** The variables every service has. A service spreads them into its own: `z.object({ ...commonConfig, DEVICE: … })`. */
export const commonConfig = {
  LISTEN_HOST: z.string().min(1).default('127.0.0.1').describe('address the gRPC and metrics servers listen on'),
  GRPC_PORT: port('port of the gRPC server'),
  METRICS_PORT: port('port of the HTTP server with /metrics and /healthz'),
  NATS_URL: z.string().min(1).default('nats://127.0.0.1:4222').describe('NATS servers, separated by commas'),
  NATS_REPLICAS: z.coerce
    .number()
    .int()
    .min(1)
    .max(5)
    .default(1)
    .describe('servers that keep each stream and record; as many as the NATS cluster has, up to 5'),
  OBJECT_STORE_URL: objectStoreUrl.describe('file:///directory, or s3://bucket?endpoint=http://host:port&region=…'),
  URI_ROOTS: z
    .string()
    .default('')
    .describe('folders and s3://bucket/prefix that imports and exports may touch, separated by commas'),
  S3_ACCESS_KEY: z.string().min(1).optional().describe('access key of the S3 store'),
  S3_SECRET_KEY: z.string().min(1).optional().describe('secret key of the S3 store'),
  OTEL_EXPORTER_OTLP_ENDPOINT: z.url().optional().describe('OTLP/HTTP collector; without it no spans are exported'),
  LOG_LEVEL: z
    .enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'])
    .default('info')
    .describe('least severe level that is logged'),
  CACHE_DIR: z.string().min(1).default('/tmp/medmesh-cache').describe('directory of the local blob cache'),
  CACHE_MAX_BYTES: z.coerce
    .number()
    .int()
    .positive()
    .default(50 * 1024 ** 3)
    .describe('most bytes the blob cache keeps'),
  SHUTDOWN_GRACE_MS: z.coerce
    .number()
    .int()
    .min(0)
    .max(3_600_000)
    .default(25_000)
    .describe('how long a stop may take before the process ends anyway'),
  PORT_FILE: z
    .string()
    .min(1)
    .optional()
    .describe('file the bound ports are written to, as JSON {grpc, metrics}, once ready'),
} as const;
