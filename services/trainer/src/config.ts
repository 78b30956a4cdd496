import { commonConfig, engineConfig } from '@medmesh/config';
import { z } from 'zod';

export const configSchema = z.object({
  ...commonConfig,
  JOB: z
    .string()
    .regex(/^projects\/[^/]+\/fineTuningJobs\/[^/]+$/)
    .optional()
    .describe('works on this one job and exits: 0 done, 42 the request’s fault, 75 handed back, 76 fenced out'),
  ...engineConfig,
  LEASE_TTL_MS: z.coerce
    .number()
    .int()
    .min(1_000)
    .default(30_000)
    .describe('a worker that is silent for so long has lost its job'),
  METRIC_INTERVAL_MS: z.coerce.number().int().min(0).default(200).describe('at most one progress event in this time'),
});

export type TrainerConfig = z.infer<typeof configSchema>;
