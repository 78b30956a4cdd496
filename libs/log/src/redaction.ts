/**
 * Names of fields that hold patient text or credentials somewhere in medmesh. Code must not log them at all; this list
 * is the second wall, for the day a whole message is logged by mistake.
 */
const redactedFields = new Set([
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
]);

/** Fields are looked for at the top level of a line and so many levels down. */
export const redactedDepth = 3;

/**
 * The same value without what the fields hold, numbers excepted; the very same where there is nothing to replace, which is nearly always and must cost
 * next to nothing. Not changed in place. `depth`: levels to look at below this one.
 */
export function redact(value: unknown, depth: number): unknown {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return value;
  // What is written of it, and not the fields that it is made of.
  if ('toJSON' in value && typeof value.toJSON === 'function') return redact(value.toJSON(), depth);
  let copy: Record<string, unknown> | unknown[] | undefined;
  for (const [key, field] of Object.entries(value)) {
    const kept = redactField(key, field, depth);
    if (kept === field) continue;
    copy ??= Array.isArray(value) ? [...value] : { ...value };
    (copy as Record<string, unknown>)[key] = kept;
  }
  return copy ?? value;
}

function redactField(key: string, field: unknown, depth: number): unknown {
  if (redactedFields.has(key)) return typeof field === 'number' ? field : '[redacted]';
  return depth > 0 ? redact(field, depth - 1) : field;
}
