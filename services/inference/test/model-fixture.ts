import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { adapterDescriptionFile, serializeAdapterDescription } from '@medmesh/catalog';
import { engineVersion, loadModel, type Model } from '@medmesh/engine';
import { seededRandom, tempDir, writeTinyModel } from '@medmesh/testkit';
import { loadTokenizer, resolveTemplate } from '@medmesh/text';
import { writeTinyTokenizer } from '@medmesh/text/testing';

export const vocabularySize = 320;
export const contextLength = 8192;

/** A model folder with random weights and the tiny tokenizer. Another `seed`, other weights. */
export async function writeBase(seed: number): Promise<string> {
  const dir = tempDir('base');
  writeTinyModel(dir, { hidden: 64, vocab: vocabularySize, contextLength, dtype: 'BF16', eosTokenId: 268, seed });
  return writeTinyTokenizer(dir);
}

/** What a base is, as its record and its adapters name it. */
export type BaseFacts = { dir: string; name: string; digest: string; tokenizerDigest: string };

/** A few steps of LoRA on random ids, enough to answer differently from the base. Returns the folder a trainer would store. */
export async function writeAdapter(base: BaseFacts, seed: number): Promise<{ dir: string; templateDigest: string }> {
  const model = await loadModel({ modelDir: base.dir });
  try {
    const dir = join(tempDir('adapter'), 'adapter');
    await train(model, dir, seed);
    const adapter = await model.loadAdapter(dir);
    const tokens = randomIds(40, 7);
    const logprobs = await model.score({ tokens, adapter });
    await adapter.close();
    const tokenizer = await loadTokenizer(base.dir);
    const template = resolveTemplate(undefined, tokenizer);
    const description = serializeAdapterDescription({
      format: 1,
      base: { name: base.name, digest: base.digest, quantization: 'none' },
      tokenizerDigest: base.tokenizerDigest,
      templateDigest: template.digest,
      template: template.canonical,
      datasetDigests: [],
      resolvedSpecDigest: '',
      job: 'projects/p/fineTuningJobs/j',
      seed,
      engine: { version: engineVersion, device: 'cpu', compute: 'bf16' },
      probes: [{ tokens: [...tokens], logprobs: [...logprobs] }],
    });
    writeFileSync(join(dir, adapterDescriptionFile), description);
    return { dir, templateDigest: template.digest };
  } finally {
    await model.close();
  }
}

async function train(model: Model, dir: string, seed: number): Promise<void> {
  const trainer = await model.createTrainer({
    method: { kind: 'lora', rank: 4, alpha: 16, dropout: 0, targetModules: ['q_proj', 'v_proj', 'down_proj'] },
    optimizer: 'adamw',
    weightDecay: 0,
    maxGradNorm: 1,
    schedule: { kind: 'constant', warmupSteps: 0, totalSteps: 20, learningRate: 5e-2 },
    seed,
  });
  const inputIds = randomIds(64, seed);
  const lossMask = new Uint8Array(inputIds.length).fill(1);
  for (let step = 0; step < 20; step += 1) {
    await trainer.trainStep([{ inputIds, lossMask, rowOffsets: Uint32Array.of(0, inputIds.length) }]);
  }
  await trainer.saveAdapter(dir, { baseModelName: 'projects/p/models/base' });
  await trainer.close();
}

/** Ids of plain bytes, the same for the same seed. */
export function randomIds(count: number, seed: number): Uint32Array {
  const random = seededRandom(seed);
  return Uint32Array.from({ length: count }, () => Math.floor(random.uniform() * 256));
}

/** A copy of an adapter's folder with the weights of another: its description no longer tells the truth. */
export function withWeightsOf(dir: string, other: string): string {
  const tampered = join(tempDir('tampered'), 'adapter');
  mkdirSync(tampered, { recursive: true });
  cpSync(dir, tampered, { recursive: true });
  const file = 'adapter_model.safetensors';
  writeFileSync(join(tampered, file), readFileSync(join(other, file)));
  return tampered;
}
