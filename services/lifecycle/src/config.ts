import { commonConfig } from '@medmesh/config';
import { z } from 'zod';

export const configSchema = z.object({
  ...commonConfig,
  RECONCILE_INTERVAL_MS: z.coerce
    .number()
    .int()
    .min(100)
    .default(5_000)
    .describe('how often jobs without an owner and half-finished endings are looked for'),
  INFERENCE_ADDRS: z
    .string()
    .default('')
    .describe(
      'inference servers that adapters are deployed to, host:port separated by commas; a name stands for all its addresses',
    ),
  PAUSED_TTL_MS: z.coerce
    .number()
    .int()
    .positive()
    .default(7 * 24 * 3_600_000)
    .describe('a job that is paused for longer is EXPIRED'),
});

export type LifecycleConfig = z.infer<typeof configSchema>;
