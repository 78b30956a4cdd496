import { createHmac, randomBytes } from 'node:crypto';

/** What keys and values of a prompt depend on besides its tokens. */
export type PrefixSource = { tenant: string; baseDigest: string; adapterDigest: string; templateDigest: string };

/**
 * Scopes for the engine's prefix cache. The key is the one that this server shares with its routers, or drawn at start and then known to nobody else: no
 * caller can name, guess or probe another tenant's scope, and nothing is shared between bases, adapters and templates.
 */
export function createPrefixScopes(key: Uint8Array = randomBytes(32)): (source: PrefixSource) => Uint8Array {
  return ({ tenant, baseDigest, adapterDigest, templateDigest }) =>
    createHmac('sha256', key)
      .update(JSON.stringify([tenant, baseDigest, adapterDigest, templateDigest]))
      .digest();
}
