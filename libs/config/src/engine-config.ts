import { z } from 'zod';

/** What every process that computes reads about the engine. */
export const engineConfig = {
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
    .describe('device memory that the engine may take on a GPU, as `24GiB`; `auto`: what is free'),
};
