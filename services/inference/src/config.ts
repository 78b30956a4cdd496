import { commonConfig, engineConfig } from '@medmesh/config';
import { z } from 'zod';

export const configSchema = z.object({
  ...commonConfig,
  PRELOAD_BASES: z
    .string()
    .default('')
    .describe('bases to load at start, names or digests, separated by commas; not ready before they are'),
  MAX_RUNNING_REQUESTS: z.coerce
    .number()
    .int()
    .min(1)
    .max(1024)
    .default(64)
    .describe('requests answered at once; more wait. The engine takes 64 sequences into a step'),
  MAX_WAITING_REQUESTS: z.coerce
    .number()
    .int()
    .min(0)
    .default(256)
    .describe('requests that may wait; more are refused with RESOURCE_EXHAUSTED'),
  MAX_WAITING_TOKENS: z.coerce
    .number()
    .int()
    .min(1)
    .default(262_144)
    .describe('prompt tokens that may wait; more are refused with RESOURCE_EXHAUSTED and a time to come back'),
  MAX_UNREAD_BYTES: z.coerce
    .number()
    .int()
    .min(1024)
    .default(4 * 2 ** 20)
    .describe(
      'of one answer or watch, how much may wait for a slow reader; beyond it the request ends with RESOURCE_EXHAUSTED',
    ),
  PREFIX_CACHE: z
    .enum(['on', 'off'])
    .default('on')
    .describe(
      'whether a tenant’s prompts that begin alike share what was read of them; off: nothing of a request outlives it',
    ),
  KV_HASH_KEY: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .optional()
    .describe(
      'secret shared with routers that watch the cache, 64 hexadecimal digits: they can tell what a prompt will find; without it one is drawn at start',
    ),
  ADAPTER_MEMORY_BYTES: z.coerce
    .number()
    .int()
    .positive()
    .default(1024 ** 3)
    .describe('adapters kept in memory; the least recently used one goes first'),
  MAX_LOADED_BASES: z.coerce
    .number()
    .int()
    .min(1)
    .default(2)
    .describe('bases kept in memory; an unused one goes when another is needed'),
  PARITY_MAX_MEAN_DIFFERENCE: z.coerce
    .number()
    .positive()
    .default(0.01)
    .describe('largest mean |Δ log p| between the trainer’s probes and this server before an adapter is refused'),
  ...engineConfig,
  // A trainer and a server on one GPU take each other's memory unless both have budgets: nobody gets the GPU unasked.
  ENGINE_DEVICE: engineConfig.ENGINE_DEVICE.unwrap()
    .default('cpu')
    .describe('`cpu`, `cuda`, `cuda:1`; `auto`: the first GPU if there is one, else the CPU'),
  ENGINE_SAME_FOR_ANY_BATCH: z
    .enum(['auto', 'on', 'off'])
    .default('auto')
    .describe(
      'whether an answer has the same bits whatever is answered beside it; `auto`: on a CPU yes, on a GPU, which it slows down, no',
    ),
  ENGINE_MOST_STEP_GROWTH: z.coerce
    .number()
    .int()
    .min(1)
    .max(64)
    .default(1)
    .describe(
      'how many times larger a step may become while prompts queue and answers advance, at most: first tokens come sooner, others’ tokens later; 1: never',
    ),
});

export type InferenceConfig = z.infer<typeof configSchema>;
