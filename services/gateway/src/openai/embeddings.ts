import { inference } from '@medmesh/proto';
import { z } from 'zod';

const tokenList = z.array(z.number().int().nonnegative());

export const embeddingSchema = z.strictObject({
  model: z.string().min(1),
  input: z.union([z.string(), z.array(z.string()).min(1), tokenList.min(1), z.array(tokenList.min(1)).min(1)]),
  encoding_format: z.enum(['float', 'base64']).nullish(),
  user: z.string().nullish(),
  // Ours: OpenAI has a model for it.
  pooling: z.enum(['mean', 'last']).nullish(),
});
export type EmbeddingBody = z.infer<typeof embeddingSchema>;

const isTokens = (input: readonly unknown[]): input is number[] => typeof input[0] === 'number';
const areTexts = (input: readonly unknown[]): input is string[] => typeof input[0] === 'string';

/** The body as the inference service takes it. Vectors have length 1, as OpenAI's have. */
export function embedRequest({ input, pooling }: EmbeddingBody, model: inference.ModelRef): inference.EmbedRequest {
  const inputs = typeof input === 'string' || isTokens(input) ? [input] : input;
  return inference.EmbedRequest.fromPartial({
    model,
    ...(areTexts(inputs) ? { texts: inputs } : { tokens: (inputs as number[][]).map((ids) => ({ ids })) }),
    pooling: pooling === 'last' ? inference.Pooling.LAST : inference.Pooling.MEAN,
    normalize: true,
  });
}

/** Little-endian fp32, which OpenAI's own clients ask for: a third of the bytes. */
const base64Of = (values: readonly number[]): string => {
  const bytes = Buffer.alloc(values.length * 4);
  for (const [i, value] of values.entries()) bytes.writeFloatLE(value, i * 4);
  return bytes.toString('base64');
};

/** The answer in OpenAI's shape; beside it the digests of what made it. */
export function embeddingList(made: inference.EmbedResponse, { model, encoding_format }: EmbeddingBody) {
  const tokens = made.embeddings.reduce((sum, { tokenCount }) => sum + tokenCount, 0);
  return {
    object: 'list',
    data: made.embeddings.map(({ values }, index) => ({
      object: 'embedding',
      index,
      embedding: encoding_format === 'base64' ? base64Of(values) : values,
    })),
    model,
    usage: { prompt_tokens: tokens, total_tokens: tokens },
    medmesh: { base_digest: made.baseDigest, adapter_digest: made.adapterDigest },
  };
}
