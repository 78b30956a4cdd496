import { commonConfig } from '@medmesh/config';
import { z } from 'zod';

export const configSchema = z.object({
  ...commonConfig,
  JOB: z
    .string()
    .regex(/^projects\/[^/]+\/fineTuningJobs\/[^/]+$/)
    .optional()
    .describe('works on this one job and exits: 0 done, 42 the request’s fault, 75 handed back, 76 fenced out'),
  ENGINE_THREADS: z.coerce
    .number()
    .int()
    .min(0)
    .max(1024)
    .default(0)
    .describe('threads of the engine; 0: as many as the CPU quota'),
  ENGINE_DEVICE: z
    .string()
    .regex(/^(auto|cpu(:0)?|cuda(:\d{1,3})?)?$/)
    .default('auto')
    .describe('`cpu`, `cuda`, `cuda:1`; `auto`: the first GPU if there is one, else the CPU'),
  ENGINE_MEMORY_BUDGET: z
    .string()
    .regex(/^(auto|[1-9]\d{0,5}(\.\d{1,3})?GiB)$/)
    .transform((text): 'auto' | number => (text === 'auto' ? 'auto' : Math.floor(Number(text.slice(0, -3)) * 2 ** 30)))
    .default('auto')
    .describe('device memory that a job may take on a GPU, as `24GiB`; `auto`: what is free'),
  LEASE_TTL_MS: z.coerce
    .number()
    .int()
    .min(1_000)
    .default(30_000)
    .describe('a worker that is silent for so long has lost its job'),
  METRIC_INTERVAL_MS: z.coerce.number().int().min(0).default(200).describe('at most one progress event in this time'),
});

export type TrainerConfig = z.infer<typeof configSchema>;
