import { createHash } from 'node:crypto';
import { lifecycle } from '@medmesh/proto';

/** JSON with sorted keys and without white space: equal values give equal bytes. */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`;
  if (value !== null && typeof value === 'object') {
    const entries = Object.entries(value).filter(([, v]) => v !== undefined);
    entries.sort(([a], [b]) => (a < b ? -1 : 1));
    return `{${entries.map(([key, v]) => `${JSON.stringify(key)}:${canonicalJson(v)}`).join(',')}}`;
  }
  return JSON.stringify(value);
}

/** `sha256:<hex>` of the canonical resolved spec: what a checkpoint must match to be resumed. */
export const specDigest = (spec: lifecycle.ResolvedSpec): string =>
  `sha256:${createHash('sha256')
    .update(canonicalJson(lifecycle.ResolvedSpec.toJSON(spec)))
    .digest('hex')}`;
