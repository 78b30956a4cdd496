import { commonConfig } from '@medmesh/config';
import { z } from 'zod';

const count = (most: number) => z.coerce.number().int().min(1).max(most);

export const configSchema = z.object({
  ...commonConfig,
  MAX_FIELD_LENGTH: count(2 ** 26)
    .default(2 ** 20)
    .describe('longest text of one field of a row, in UTF-16 code units; longer ones are FIELD_TOO_LARGE'),
  MAX_ROW_LENGTH: count(2 ** 28)
    .default(2 ** 24)
    .describe('longest encoded row, in UTF-16 code units; longer ones are skipped as FIELD_TOO_LARGE'),
  MAX_ROW_COUNT: count(2 ** 31)
    .default(10_000_000)
    .describe('most rows of one dataset version; 16 to 32 bytes of memory each'),
  MAX_UPLOAD_BYTES: z.coerce
    .number()
    .int()
    .min(1)
    .default(64 * 2 ** 30)
    .describe('largest file that can be uploaded'),
  UPLOAD_URL_TTL_SECONDS: count(7 * 86_400)
    .default(3600)
    .describe('how long a URL for an upload stays valid'),
  MAX_LOADED_TOKENIZERS: count(64)
    .default(3)
    .describe('tokenizers kept in memory, about 100 MB each; the least recently used one goes first'),
});

export type FormatterConfig = z.infer<typeof configSchema>;
