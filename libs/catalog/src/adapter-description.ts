import { Failure } from '@medmesh/errors';

/** The file that describes an adapter beside its PEFT files. */
export const adapterDescriptionFile = 'medmesh.json';

/**
 * `medmesh.json`: what the adapter was made of, and parity probes. A probe is a sequence of token ids with the trainer's own
 * log p(token[i+1] | token[..i]); a server replays it before it serves the adapter. Probes are rendered from fixed public
 * sentences and seeded random ids, never from rows.
 */
export type AdapterDescription = {
  format: 1;
  base: { name: string; digest: string; quantization: string };
  tokenizerDigest: string;
  templateDigest: string;
  /** The canonical template, as `resolveCanonicalTemplate` of @medmesh/text takes it. */
  template: string;
  datasetDigests: string[];
  resolvedSpecDigest: string;
  job: string;
  seed: number;
  engine: { version: string; device: string; compute: 'bf16' | 'f32' };
  probes: { tokens: number[]; logprobs: number[] }[];
};

export const serializeAdapterDescription = (description: AdapterDescription): string =>
  `${JSON.stringify(description, null, 2)}\n`;

/** Reads `medmesh.json`; Failure `failed_precondition` saying what is missing. */
export function parseAdapterDescription(text: string): AdapterDescription {
  let parsed: Partial<AdapterDescription>;
  try {
    parsed = JSON.parse(text) as Partial<AdapterDescription>;
  } catch (cause) {
    throw new Failure('failed_precondition', 'medmesh.json is not JSON', {
      reason: 'ADAPTER_DESCRIPTION_INVALID',
      cause,
    });
  }
  if (parsed === null || typeof parsed !== 'object' || parsed.format !== 1) {
    throw new Failure('failed_precondition', 'medmesh.json has another format than 1', {
      reason: 'ADAPTER_DESCRIPTION_INVALID',
    });
  }
  const sound =
    typeof parsed.base?.digest === 'string' &&
    Array.isArray(parsed.probes) &&
    parsed.probes.every(
      (p) => Array.isArray(p?.tokens) && Array.isArray(p.logprobs) && p.logprobs.length === p.tokens.length - 1,
    );
  if (!sound)
    throw new Failure('failed_precondition', 'medmesh.json lacks its base or well-formed probes', {
      reason: 'ADAPTER_DESCRIPTION_INVALID',
    });
  return parsed as AdapterDescription;
}
