import { invalidField } from '@medmesh/errors';
import { inference } from '@medmesh/proto';
import { z } from 'zod';

/** What a body says about sampling, in both APIs. `null` is as good as absent, as OpenAI's own clients send it. */
const shared = {
  model: z.string().min(1),
  stream: z.boolean().nullish(),
  stream_options: z
    .strictObject({ include_usage: z.boolean().nullish(), include_obfuscation: z.boolean().nullish() })
    .nullish(),
  temperature: z.number().nullish(),
  top_p: z.number().nullish(),
  n: z.number().int().nullish(),
  stop: z.union([z.string(), z.array(z.string())]).nullish(),
  seed: z.number().int().nullish(),
  presence_penalty: z.number().nullish(),
  frequency_penalty: z.number().nullish(),
  logit_bias: z.record(z.string().regex(/^\d+$/), z.number()).nullish(),
  max_tokens: z.number().int().nullish(),
  user: z.string().nullish(),
  // Of vLLM's API.
  top_k: z.number().int().nullish(),
  min_p: z.number().nullish(),
  repetition_penalty: z.number().nullish(),
  stop_token_ids: z.array(z.number().int()).nullish(),
  ignore_eos: z.boolean().nullish(),
  structured_outputs: z
    .strictObject({
      choice: z.array(z.string()).optional(),
      regex: z.string().optional(),
      json: z.union([z.string(), z.record(z.string(), z.unknown())]).optional(),
    })
    .nullish(),
};

const textPart = z.strictObject({ type: z.literal('text'), text: z.string() });
const message = z.looseObject({
  role: z.enum(['system', 'developer', 'user', 'assistant']),
  content: z.union([z.string(), z.array(textPart)]),
});

export const chatSchema = z.strictObject({
  ...shared,
  messages: z.array(message).min(1),
  max_completion_tokens: z.number().int().nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.number().int().nullish(),
  response_format: z
    .discriminatedUnion('type', [
      z.looseObject({ type: z.literal('text') }),
      z.looseObject({ type: z.literal('json_object') }),
      z.looseObject({
        type: z.literal('json_schema'),
        json_schema: z.looseObject({ schema: z.record(z.string(), z.unknown()) }),
      }),
    ])
    .nullish(),
  reasoning_effort: z.enum(['none', 'minimal', 'low', 'medium', 'high', 'xhigh']).nullish(),
  // Accepted where they ask for what is done anyway.
  tool_choice: z.literal('none').nullish(),
  tools: z.array(z.never()).max(0).nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  store: z.literal(false).nullish(),
  metadata: z.record(z.string(), z.string()).nullish(),
  service_tier: z.enum(['auto', 'default']).nullish(),
});
export type ChatBody = z.infer<typeof chatSchema>;

const tokenList = z.array(z.number().int().nonnegative());
export const completionSchema = z.strictObject({
  ...shared,
  prompt: z.union([z.string(), z.array(z.string()).min(1), tokenList.min(1), z.array(tokenList.min(1)).min(1)]),
  logprobs: z.number().int().min(0).max(20).nullish(),
  echo: z.literal(false).nullish(),
  best_of: z.literal(1).nullish(),
  suffix: z.literal('').nullish(),
});
export type CompletionBody = z.infer<typeof completionSchema>;

/** New tokens of a completion that names no limit, as OpenAI has it. */
const completionMaxTokens = 16;

/** The body as the schema has it. Failure `invalid_argument` naming each fault by its path, never by its value. */
export function parseBody<T>(schema: z.ZodType<T>, body: unknown): T {
  const tools = (body as { tools?: unknown } | null)?.tools;
  if (Array.isArray(tools) && tools.length > 0) throw invalidField('tools', 'are not supported by this server');
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  if (issue?.code === 'unrecognized_keys') throw invalidField(issue.keys[0] ?? '', 'is not a parameter of this server');
  throw invalidField(issue?.path.join('.') ?? 'body', issue === undefined ? 'is malformed' : issue.message);
}

/** OpenAI's defaults where they differ from the server's own: its contract says 1. */
function samplingOf(body: ChatBody | CompletionBody, maxTokens: number | undefined): inference.Sampling {
  return inference.Sampling.fromPartial({
    temperature: body.temperature ?? 1,
    topP: body.top_p ?? undefined,
    topK: body.top_k ?? undefined,
    minP: body.min_p ?? undefined,
    repetitionPenalty: body.repetition_penalty ?? undefined,
    presencePenalty: body.presence_penalty ?? undefined,
    frequencyPenalty: body.frequency_penalty ?? undefined,
    seed: body.seed ?? undefined,
    maxTokens,
    stop: typeof body.stop === 'string' ? [body.stop] : (body.stop ?? []),
    stopTokenIds: body.stop_token_ids ?? [],
    ignoreEos: body.ignore_eos ?? undefined,
    logitBias: Object.fromEntries(Object.entries(body.logit_bias ?? {}).map(([id, bias]) => [Number(id), bias])),
    n: body.n ?? undefined,
  });
}

function structured(body: ChatBody | CompletionBody): inference.Constraint['rule'] {
  const asked = body.structured_outputs ?? {};
  if (Object.keys(asked).length > 1) throw invalidField('structured_outputs', 'names more than one rule');
  if (asked.choice !== undefined) return { $case: 'choices', value: { options: asked.choice } };
  if (asked.regex !== undefined) return { $case: 'regex', value: asked.regex };
  if (asked.json === undefined) return undefined;
  return { $case: 'jsonSchema', value: typeof asked.json === 'string' ? asked.json : JSON.stringify(asked.json) };
}

function chatRule(body: ChatBody): inference.Constraint['rule'] {
  const rule = structured(body);
  const format = body.response_format;
  if (format === null || format === undefined || format.type === 'text') return rule;
  if (rule !== undefined) throw invalidField('response_format', 'and structured_outputs are two rules; give one');
  const schema = format.type === 'json_object' ? { type: 'object' } : format.json_schema.schema;
  return { $case: 'jsonSchema', value: JSON.stringify(schema) };
}

const textOf = (content: ChatBody['messages'][number]['content']): string =>
  typeof content === 'string' ? content : content.map(({ text }) => text).join('');

/** A chat as the inference service takes it. */
export function chatRequest(body: ChatBody, model: inference.ModelRef): inference.GenerateRequest {
  const rule = chatRule(body);
  const off = body.reasoning_effort === 'none' || body.reasoning_effort === 'minimal';
  if (body.top_logprobs != null && body.logprobs !== true) throw invalidField('top_logprobs', 'needs logprobs: true');
  return inference.GenerateRequest.fromPartial({
    model,
    input: {
      $case: 'chat',
      value: {
        turns: body.messages.map(({ role, content }) => ({
          role: role === 'developer' ? 'system' : role,
          content: textOf(content),
        })),
      },
    },
    sampling: samplingOf(body, body.max_completion_tokens ?? body.max_tokens ?? undefined),
    ...(rule === undefined ? {} : { constraint: { rule } }),
    ...(off ? { reasoning: { mode: inference.Reasoning_Mode.OFF } } : {}),
    ...(body.logprobs === true ? { logprobs: { chosen: true, top: body.top_logprobs ?? 0 } } : {}),
  });
}

const isTokens = (prompt: readonly unknown[]): prompt is number[] => typeof prompt[0] === 'number';

/** One request for each prompt of a completion. */
export function completionRequests(body: CompletionBody, model: inference.ModelRef): inference.GenerateRequest[] {
  const prompts = typeof body.prompt === 'string' || isTokens(body.prompt) ? [body.prompt] : body.prompt;
  if (prompts.length > 16) throw invalidField('prompt', `has ${prompts.length} prompts; at most 16 in one request`);
  const rule = structured(body);
  return prompts.map((prompt) =>
    inference.GenerateRequest.fromPartial({
      model,
      input:
        typeof prompt === 'string' ? { $case: 'text', value: prompt } : { $case: 'tokens', value: { ids: prompt } },
      sampling: samplingOf(body, body.max_tokens ?? completionMaxTokens),
      ...(rule === undefined ? {} : { constraint: { rule } }),
      ...(body.logprobs == null ? {} : { logprobs: { chosen: true, top: body.logprobs } }),
    }),
  );
}
