import { Failure } from '@medmesh/errors';
import { inference, lifecycle, model } from '@medmesh/proto';
import type { Client, Metadata } from '@medmesh/rpc';

export type ModelEntry = {
  id: string;
  object: 'model';
  created: number;
  owned_by: 'medmesh';
  medmesh: { name: string; kind: 'base' | 'adapter'; digest: string };
};

export type Models = {
  /** Every adapter that may be served and every base that is ready. */
  list(metadata: Metadata): Promise<ModelEntry[]>;
  find(id: string, metadata: Metadata): Promise<ModelEntry>;
};

const pageSize = 1000;

const unknown = (id: string) =>
  new Failure('not_found', `there is no model ${JSON.stringify(id.slice(0, 100))}; GET /v1/models lists them`, {
    reason: 'MODEL_NOT_FOUND',
    fields: [{ field: 'model', description: 'is not known' }],
  });

/** What an entry asks the inference service for. */
export const modelRef = ({ medmesh: { kind, digest } }: ModelEntry): inference.ModelRef =>
  inference.ModelRef.fromPartial(kind === 'adapter' ? { adapter: digest } : { base: digest });

/**
 * Adapters and bases as OpenAI's models. An id is the last part of a resource name in `project`; an adapter comes before a base of the same id, which
 * then goes by its whole name. Whole names and digests find either.
 */
export function createModels(
  adapters: Pick<Client<lifecycle.AdapterServiceDefinition>, 'listAdapters'>,
  bases: Pick<Client<model.ModelServiceDefinition>, 'listModels'>,
  project: string,
): Models {
  const parent = `projects/${project}`;
  const entry = (
    kind: 'base' | 'adapter',
    { name, digest, createTime }: { name: string; digest: string; createTime?: Date | undefined },
  ): ModelEntry => ({
    id: name.split('/').at(-1) ?? name,
    object: 'model',
    created: Math.floor((createTime?.getTime() ?? 0) / 1000),
    owned_by: 'medmesh',
    medmesh: { name, kind, digest },
  });

  const list = async (metadata: Metadata): Promise<ModelEntry[]> => {
    const found: ModelEntry[] = [];
    for (let pageToken: string | undefined = ''; pageToken !== undefined; ) {
      const page: lifecycle.ListAdaptersResponse = await adapters.listAdapters(
        { parent, pageSize, pageToken },
        { metadata },
      );
      found.push(
        ...page.adapters
          .filter(
            ({ state }) => state === lifecycle.Adapter_State.ACTIVE || state === lifecycle.Adapter_State.DEPRECATED,
          )
          .map((adapter) => entry('adapter', adapter)),
      );
      pageToken = page.nextPageToken || undefined;
    }
    const taken = new Set(found.map(({ id }) => id));
    for (let pageToken: string | undefined = ''; pageToken !== undefined; ) {
      const page: model.ListModelsResponse = await bases.listModels({ parent, pageSize, pageToken }, { metadata });
      for (const base of page.models.filter(({ state }) => state === model.Model_State.READY)) {
        const made = entry('base', base);
        found.push(taken.has(made.id) ? { ...made, id: base.name } : made);
      }
      pageToken = page.nextPageToken || undefined;
    }
    return found;
  };

  return {
    list,
    async find(id, metadata) {
      const all = await list(metadata);
      const match =
        all.find((m) => m.id === id) ?? all.find(({ medmesh }) => medmesh.name === id || medmesh.digest === id);
      if (match === undefined) throw unknown(id);
      return match;
    },
  };
}
