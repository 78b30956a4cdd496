import { artifactFiles, names } from '@medmesh/catalog';
import { inspectModel } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { collectFolder } from '@medmesh/objects';
import { model } from '@medmesh/proto';
import { checkResourceId, keyOf } from '@medmesh/records';
import { loadTokenizer } from '@medmesh/text';
import type { QuantizerDeps, Report } from './deps.ts';

/** Checks a new model's id before anything is begun. */
export async function checkNewModel(deps: QuantizerDeps, parent: string, modelId: string): Promise<string> {
  const { project } = names.project.parse(parent);
  checkResourceId(modelId, 'model_id', { dots: true });
  const name = names.model.format({ project, model: modelId });
  if ((await deps.catalog.models.get(keyOf(name))) !== undefined) throw alreadyExists(name);
  return name;
}

const alreadyExists = (name: string) => new Failure('already_exists', `${name} exists; choose another model_id or delete it`, { reason: 'MODEL_EXISTS' });

/** The record that keeps the id while the model is prepared. The same operation finds it again after a crash. */
export async function reserveModel(deps: QuantizerDeps, name: string, operation: string, fields: Partial<model.Model>): Promise<void> {
  const now = new Date();
  const record = model.Model.fromPartial({ state: model.Model_State.PREPARING, createTime: now, updateTime: now });
  try {
    await deps.catalog.models.create(keyOf(name), { ...record, ...fields, name, operation });
  } catch (error) {
    if (!(error instanceof Failure && error.code === 'already_exists')) throw error;
    const existing = await deps.catalog.models.get(keyOf(name));
    if (existing?.value.operation !== operation) throw alreadyExists(name);
  }
}

/** Takes the reservation back: a failed preparation leaves nothing behind. */
export async function dropReservation(deps: QuantizerDeps, name: string, operation: string): Promise<void> {
  const existing = await deps.catalog.models.get(keyOf(name));
  if (existing === undefined || existing.value.operation !== operation || existing.value.state === model.Model_State.READY) return;
  await deps.catalog.models.delete(existing.key, existing.revision);
}

function quantizationOf(info: { quantization: 'none' | 'nf4'; doubleQuant: boolean }): model.Quantization {
  if (info.quantization === 'none') return model.Quantization.NONE;
  return info.doubleQuant ? model.Quantization.NF4_DOUBLE_QUANT : model.Quantization.NF4;
}

/** Verifies a folder, stores it as blobs, and turns the reservation into a ready model. */
export async function commitModel(deps: QuantizerDeps, name: string, operation: string, dir: string, origin: model.ModelOrigin, report: Report, signal: AbortSignal): Promise<model.Model> {
  report('VERIFY', 0, 0);
  const info = await inspectModel(dir);
  const tokenizer = await loadTokenizer(dir);
  if (tokenizer.vocabularySize > info.vocabSize) {
    throw new Failure('invalid_argument', `the tokenizer has ${tokenizer.vocabularySize} tokens, the model only ${info.vocabSize}; they do not belong together`, { reason: 'TOKENIZER_MISMATCH' });
  }
  signal.throwIfAborted();
  report('STORE', 0, info.weightBytes);
  const { manifest, digest } = await collectFolder(deps.store, dir, 'model', {}, { signal });
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
