import { createHash } from 'node:crypto';
import { readFileSync, unwatchFile, watchFile } from 'node:fs';
import { Failure } from '@medmesh/errors';
import type { Logger } from '@medmesh/log';
import { z } from 'zod';

/** Who a key belongs to, and what it opens: everything, or only asking for text. */
export type Caller = { readonly tenant: string; readonly access: 'all' | 'inference' };

export type ApiKeys = {
  /** The caller of an `Authorization` header. Failure `unauthenticated` without a known key; it never holds the key. */
  authenticate(authorization: string | undefined): Caller;
  close(): void;
};

const fileSchema = z.strictObject({
  keys: z.array(
    z.strictObject({
      tenant: z.string().regex(/^[a-z0-9][a-z0-9-]{0,62}$/, 'use a-z, 0-9 and -, at most 63'),
      sha256: z.string().regex(/^[0-9a-f]{64}$/, 'use the 64 hex digits of the key’s SHA-256'),
      access: z.enum(['all', 'inference']).default('inference'),
    }),
  ),
});

const rereadMs = 1_000;

function readKeys(path: string): Map<string, Caller> {
  let parsed: z.infer<typeof fileSchema>;
  try {
    parsed = fileSchema.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch (cause) {
    const why =
      cause instanceof z.ZodError ? z.prettifyError(cause).replaceAll('\n', ' ') : 'it cannot be read as JSON';
    throw new Failure('failed_precondition', `the key file ${path} cannot be used: ${why}`, {
      reason: 'API_KEYS_INVALID',
      cause,
    });
  }
  return new Map(parsed.keys.map(({ sha256, tenant, access }) => [sha256, { tenant, access }]));
}

/**
 * Callers by the SHA-256 of their bearer keys, from a file `{"keys": [{"tenant", "sha256", "access"}]}`: who reads the file learns no key. A change of
 * the file takes effect within a second; one that cannot be read is logged and the old keys stay. Keys must be random (32 bytes), since a digest
 * hides only what cannot be guessed.
 */
export function openApiKeys(path: string, log: Logger): ApiKeys {
  let callers = readKeys(path);
  const reread = () => {
    try {
      callers = readKeys(path);
      log.info({ keys: callers.size }, 'the key file was read again');
    } catch (error) {
      log.error({ err: error }, 'the key file changed and cannot be used; the old keys stay');
    }
  };
  watchFile(path, { interval: rereadMs, persistent: false }, reread);
  return {
    authenticate(authorization) {
      const key = /^Bearer +(\S+)$/i.exec(authorization ?? '')?.[1];
      if (key === undefined) {
        throw new Failure('unauthenticated', 'send a key as `Authorization: Bearer …`', { reason: 'API_KEY_MISSING' });
      }
      // A look-up by digest tells nothing about a key by its time.
      const caller = callers.get(createHash('sha256').update(key).digest('hex'));
      if (caller === undefined)
        throw new Failure('unauthenticated', 'the key is not known here', { reason: 'API_KEY_UNKNOWN' });
      return caller;
    },
    close: () => unwatchFile(path, reread),
  };
}

/** Where no keys are asked for: everybody may do everything, as one tenant. */
export const openToAll: ApiKeys = {
  authenticate: () => ({ tenant: '', access: 'all' }),
  close: () => undefined,
};
