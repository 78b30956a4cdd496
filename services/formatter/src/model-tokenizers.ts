import { createHash } from 'node:crypto';
import type { Catalog } from '@medmesh/catalog';
import { manifestOf, names } from '@medmesh/catalog';
import { Failure, notFound } from '@medmesh/errors';
import type { Cache, Materialized } from '@medmesh/objects';
import { model } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { loadTokenizer, type TextTokenizer } from '@medmesh/text';

export type ModelTokenizer = {
  readonly model: model.Model;
  readonly tokenizer: TextTokenizer;
  /** Lays out the files it was loaded from. */
  readonly openFolder: (signal: AbortSignal) => Promise<Materialized>;
};

export type ModelTokenizers = {
  /** A ready model and its tokenizer. Failures: `not_found`, `failed_precondition` MODEL_NOT_READY or TOKENIZER_MISSING. */
  get(modelName: string, signal: AbortSignal): Promise<ModelTokenizer>;
};

/** The files of a model that decide its tokens and templates. */
const tokenizerFiles = new Set([
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
  'config.json',
  'chat_template.jinja',
  'chat_template.json',
]);

/** Loads tokenizers of models from the object store, and keeps the last few, by their files' digests. */
export function createModelTokenizers(o: {
  readonly catalog: Pick<Catalog, 'models'>;
  readonly cache: Pick<Cache, 'materialize'>;
  readonly maxLoaded: number;
}): ModelTokenizers {
  // In order of use, the least recent first. Promises, so that callers at once share one load.
  const loaded = new Map<string, Promise<TextTokenizer>>();

  const load = async (files: readonly model.ArtifactFile[]): Promise<TextTokenizer> => {
    // Shared by whoever asks meanwhile, so no one caller's signal may end it.
    const folder = await o.cache.materialize(manifestOf('model', files), AbortSignal.timeout(120_000));
    try {
      return await loadTokenizer(folder.dir);
    } finally {
      folder.release();
    }
  };

  return {
    async get(modelName, signal) {
      names.model.parse(modelName);
      const entry = await o.catalog.models.get(keyOf(modelName));
      if (entry === undefined) throw notFound(modelName);
      if (entry.value.state !== model.Model_State.READY) {
        throw new Failure('failed_precondition', `${modelName} is not ready`, { reason: 'MODEL_NOT_READY' });
      }
      const files = entry.value.files.filter((f) => tokenizerFiles.has(f.path));
      if (!files.some((f) => f.path === 'tokenizer.json')) {
        throw new Failure('failed_precondition', `${modelName} has no tokenizer.json; import it again with one`, {
          reason: 'TOKENIZER_MISSING',
        });
      }
      const key = createHash('sha256')
        .update(
          files
            .map((f) => `${f.path}=${f.digest}`)
            .sort()
            .join('\n'),
        )
        .digest('hex');
      const known = loaded.get(key);
      const tokenizer = known ?? load(files);
      loaded.delete(key);
      loaded.set(key, tokenizer);
      if (known === undefined) tokenizer.catch(() => loaded.delete(key));
      if (loaded.size > o.maxLoaded) loaded.delete(loaded.keys().next().value!);
      signal.throwIfAborted();
      return {
        model: entry.value,
        tokenizer: await tokenizer,
        openFolder: (until) => o.cache.materialize(manifestOf('model', files), until),
      };
    },
  };
}
