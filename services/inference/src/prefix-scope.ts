import { createHmac, randomBytes } from 'node:crypto';

/** What keys and values of a prompt depend on besides its tokens. */
export type PrefixSource = { tenant: string; baseDigest: string; adapterDigest: string; templateDigest: string };

/**
 * Scopes for the engine's prefix cache. The salt is drawn at start and never leaves the process: no caller can name, guess or probe another tenant's
 * scope, and nothing is shared between bases, adapters and templates.
 */
export function createPrefixScopes(): (source: PrefixSource) => Uint8Array {
  const salt = randomBytes(32);
  return ({ tenant, baseDigest, adapterDigest, templateDigest }) =>
    createHmac('sha256', salt)
      .update(JSON.stringify([tenant, baseDigest, adapterDigest, templateDigest]))
      .digest();
}
