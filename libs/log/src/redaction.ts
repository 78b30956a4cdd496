/**
 * Names of fields that hold patient text or credentials somewhere in medmesh. Code must not log them at all; this list
 * is the second wall, for the day a whole message is logged by mistake.
 */
const redactedFields = [
  // rows and their parts
  'row',
  'rows',
  'slots',
  'question',
  'answer',
  'reasoning',
  'response',
  'example',
  'examples',
  // prompts and outputs
  'prompt',
  'prompts',
  'messages',
  'content',
  'text',
  'texts',
  'completion',
  'output',
  'tokens',
  'tokenIds',
  'token_ids',
  // credentials
  'authorization',
  'Authorization',
  'cookie',
  'password',
  'secret',
  'secretKey',
  'accessKey',
  'token',
  'apiKey',
];

/** Each field at the top level and up to three levels down. */
export const redactedPaths: string[] = ['', '*.', '*.*.', '*.*.*.'].flatMap((prefix) =>
  redactedFields.map((field) => prefix + field),
);
