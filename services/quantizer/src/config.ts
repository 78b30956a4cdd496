import { commonConfig } from '@medmesh/config';
import { z } from 'zod';

const hubUrl = z.url({ protocol: /^https?$/, error: 'write an http:// or https:// address' });

const hubUrls = z
  .string()
  .default('')
  .refine(
    (text) => text.split(',').every((part) => part === '' || hubUrl.safeParse(part).success),
    'write http:// or https:// addresses, separated by commas',
  );

export const configSchema = z.object({
  ...commonConfig,
  HUGGING_FACE_URL: hubUrl
    .default('https://huggingface.co')
    .describe('hub behind hf:// imports; contacted only when an import names it'),
  MODELSCOPE_URL: hubUrl
    .default('https://modelscope.cn')
    .describe('hub behind modelscope:// imports; contacted only when an import names it'),
  HUGGING_FACE_TOKEN: z
    .string()
    .min(1)
    .optional()
    .describe('access token for private models; sent to HUGGING_FACE_URL only, never to where it redirects'),
  MODELSCOPE_TOKEN: z
    .string()
    .min(1)
    .optional()
    .describe('access token for private models; sent to MODELSCOPE_URL only, never to where it redirects'),
  HUB_URLS_ALLOWED: hubUrls.describe('other hub addresses that an import’s hub_url may name; they get no token'),
  STAGING_DIR: z
    .string()
    .min(1)
    .default('/tmp/medmesh-staging')
    .describe('where downloads and new models lie until they are stored; as large as the largest model'),
  OPERATION_SILENCE_MS: z.coerce
    .number()
    .int()
    .min(1_000)
    .default(30_000)
    .describe('how long a process may be silent before its operations go to another'),
});

export type QuantizerConfig = z.infer<typeof configSchema>;
