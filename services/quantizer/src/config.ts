import { commonConfig } from '@medmesh/config';
import { z } from 'zod';

export const configSchema = z.object({
  ...commonConfig,
  HUGGING_FACE_URL: z.url().default('https://huggingface.co').describe('hub behind hf:// imports; contacted only when an import names it'),
  MODELSCOPE_URL: z.url().default('https://modelscope.cn').describe('hub behind modelscope:// imports; contacted only when an import names it'),
  HUB_TOKEN: z.string().min(1).optional().describe('access token for private models of a hub; sent to the hub’s own address only'),
  HUB_URLS_ALLOWED: z.string().default('').describe('other hub addresses that an import’s hub_url may name, separated by commas'),
  STAGING_DIR: z.string().min(1).default('/tmp/medmesh-staging').describe('where downloads and new models lie until they are stored'),
});

export type QuantizerConfig = z.infer<typeof configSchema>;
