import { engineVersion } from '@medmesh/engine';
import { Failure, notFound, toFailure } from '@medmesh/errors';
import { type inference, openInference } from '@medmesh/proto';
import { bind, callerTenant, type Health, type ServiceBinding } from '@medmesh/rpc';
import type { Adapters } from './adapters.ts';
import { type Bases, quantizationName } from './bases.ts';
import { type Complete, inputNames, modelInfer, outputNames } from './model-infer.ts';

export type OpenInferenceDeps = { bases: Bases; adapters: Adapters; health: Health; complete: Complete };

/** What stands behind a name, and how generation is asked for it. */
export type Servable = { digest: string; base: string; ref: inference.ModelRef; properties: Record<string, string> };

/** What a name or digest stands for, as far as it may be served; its version, if one is named, must be its digest. */
async function find({ bases, adapters }: OpenInferenceDeps, name: string, version: string): Promise<Servable> {
  const asAdapter = async (): Promise<Servable> => {
    const record = await adapters.resolve(name);
    const base = await bases.resolve(record.baseDigest);
    return {
      digest: record.digest,
      base: quantizationName(base.quantization),
      ref: { base: '', adapter: record.name },
      properties: {
        base_digest: record.baseDigest,
        template_digest: record.templateDigest,
        tokenizer_digest: record.tokenizerDigest,
      },
    };
  };
  const asBase = async (): Promise<Servable> => {
    const record = await bases.resolve(name);
    return {
      digest: record.digest,
      base: quantizationName(record.quantization),
      ref: { base: record.name, adapter: '' },
      properties: { tokenizer_digest: record.tokenizerDigest },
    };
  };
  const found = name.includes('/adapters/')
    ? await asAdapter()
    : name.includes('/models/')
      ? await asBase()
      : await asAdapter().catch((error: unknown) => {
          if (toFailure(error).code !== 'not_found') throw error;
          return asBase();
        });
  if (version !== '' && version !== found.digest) throw notFound(`version ${version} of ${name}`);
  return found;
}

/** Names that can never be served, or not now; anything else is a fault of its own. */
const notServable = new Set(['not_found', 'failed_precondition', 'invalid_argument']);

/** Health, metadata and inference of the Open Inference Protocol, version 2. */
export const openInferenceService = (deps: OpenInferenceDeps): ServiceBinding =>
  bind(openInference.GRPCInferenceServiceDefinition, {
    serverLive: () => Promise.resolve({ live: deps.health.isServing('live') }),
    serverReady: () => Promise.resolve({ ready: deps.health.isServing('ready') }),
    serverMetadata: () => Promise.resolve({ name: 'medmesh', version: engineVersion, extensions: [] }),
    async modelReady({ name, version }) {
      try {
        await find(deps, name, version);
        return { ready: deps.health.isServing('ready') };
      } catch (error) {
        if (error instanceof Failure && notServable.has(error.code)) return { ready: false };
        throw error;
      }
    },
    async modelMetadata({ name, version }) {
      const { digest, base, properties } = await find(deps, name, version);
      const text = (field: string) => ({ name: field, datatype: 'BYTES', shape: [-1] });
      return {
        name,
        versions: [digest],
        platform: `medmesh_${base}`,
        inputs: inputNames.map(text),
        outputs: outputNames.map(text),
        properties,
      };
    },
    async modelInfer(request, context) {
      const found = await find(deps, request.modelName, request.modelVersion);
      return await modelInfer(deps.complete, request, found, callerTenant(context), context.signal);
    },
  });
