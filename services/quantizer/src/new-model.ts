import { artifactFiles, names } from '@medmesh/catalog';
import { inspectModel } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { collectFolder } from '@medmesh/objects';
import { model } from '@medmesh/proto';
import { checkResourceId, keyOf } from '@medmesh/records';
import { loadTokenizer } from '@medmesh/text';
import type { QuantizerDeps, Run } from './deps.ts';

const alreadyExists = (name: string) =>
  new Failure('already_exists', `${name} exists; choose another model_id or delete it`, { reason: 'MODEL_EXISTS' });

/** A reservation whose operation has ended: a process died at the wrong moment. It keeps nobody from the id. */
const isAbandoned = async (deps: QuantizerDeps, record: model.Model): Promise<boolean> =>
  record.state === model.Model_State.PREPARING && (await deps.hasEnded(record.operation));

/** The new model's name; Failure `invalid_argument` for an id or project that cannot be one. */
export function newModelName(parent: string, modelId: string): string {
  const { project } = names.project.parse(parent);
  checkResourceId(modelId, 'model_id', { dots: true });
  return names.model.format({ project, model: modelId });
}

/** Failure `already_exists` MODEL_EXISTS if the id is taken. */
export async function checkFree(deps: QuantizerDeps, name: string): Promise<void> {
  const existing = await deps.catalog.models.get(keyOf(name));
  if (existing !== undefined && !(await isAbandoned(deps, existing.value))) throw alreadyExists(name);
}

/**
 * Makes the record that keeps the id while the model is prepared. The same operation finds it again after a crash; if it had made the model already,
 * that is returned.
 */
export async function reserveModel(
  deps: QuantizerDeps,
  name: string,
  operation: string,
  fields: Partial<model.Model>,
): Promise<model.Model | undefined> {
  const { models } = deps.catalog;
  const now = new Date();
  const record = {
    ...model.Model.fromPartial({ state: model.Model_State.PREPARING, createTime: now, updateTime: now }),
    ...fields,
    name,
    operation,
  };
  const existing = await models.get(keyOf(name));
  if (existing?.value.operation === operation)
    return existing.value.state === model.Model_State.READY ? existing.value : undefined;
  if (existing === undefined) {
    await models.create(keyOf(name), record).catch((error: unknown) => {
      throw error instanceof Failure && error.code === 'already_exists' ? alreadyExists(name) : error;
    });
  } else {
    if (!(await isAbandoned(deps, existing.value))) throw alreadyExists(name);
    await models.update(existing.key, record, existing.revision);
  }
  return undefined;
}

/** Takes the reservation back: a failed preparation leaves nothing behind. */
export async function dropReservation(deps: QuantizerDeps, name: string, operation: string): Promise<void> {
  const existing = await deps.catalog.models.get(keyOf(name));
  if (
    existing === undefined ||
    existing.value.operation !== operation ||
    existing.value.state === model.Model_State.READY
  )
    return;
  await deps.catalog.models.delete(existing.key, existing.revision);
}

function quantizationOf(info: { quantization: 'none' | 'nf4'; doubleQuant: boolean }): model.Quantization {
  if (info.quantization === 'none') return model.Quantization.NONE;
  return info.doubleQuant ? model.Quantization.NF4_DOUBLE_QUANT : model.Quantization.NF4;
}

/**
 * Verifies a folder, stores it as blobs, and turns the reservation into a ready model.
 * @throws Failure for weights that break their format or do not fit config.json, and TOKENIZER_MISMATCH.
 */
export async function commitModel(
  deps: QuantizerDeps,
  name: string,
  dir: string,
  origin: model.ModelOrigin,
  { operation, report, signal }: Run,
): Promise<model.Model> {
  report('VERIFY', 0, 0);
  const info = await inspectModel(dir);
  const tokenizer = await loadTokenizer(dir);
  if (tokenizer.vocabularySize > info.vocabSize) {
    throw new Failure(
      'invalid_argument',
      `the tokenizer has ${tokenizer.vocabularySize} tokens, the model only ${info.vocabSize}; they do not belong together`,
      { reason: 'TOKENIZER_MISMATCH' },
    );
  }
  signal.throwIfAborted();
  const { manifest, digest } = await collectFolder(
    deps.store,
    dir,
    'model',
    {},
    {
      signal,
      immutable: true,
      onProgress: (bytes) => report('STORE', Math.min(bytes, info.weightBytes), info.weightBytes),
    },
  );
  report('STORE', info.weightBytes, info.weightBytes);
  const entry = await deps.catalog.models.modify(keyOf(name), (current) => {
    if (current.operation !== operation) throw alreadyExists(name);
    return {
      ...current,
      state: model.Model_State.READY,
      quantization: quantizationOf(info),
      modelType: info.modelType,
      parameterCount: info.parameterCount,
      weightBytes: info.weightBytes,
      vocabularySize: info.vocabSize,
      contextLength: info.contextLength,
      digest,
      tokenizerDigest: tokenizer.digest,
      files: artifactFiles(manifest),
      origin,
      updateTime: new Date(),
    };
  });
  deps.log.info({ model: name, digest, parameters: info.parameterCount, bytes: info.weightBytes }, 'model ready');
  return entry.value;
}
