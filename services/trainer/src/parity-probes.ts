import type { Adapter, Model, Trainer } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { encodeSegments, loadTokenizer, resolveCanonicalTemplate } from '@medmesh/text';

/** A probe: token ids and log p(token[i+1] | token[..i]). */
export type Probe = { tokens: number[]; logprobs: number[] };

// Fixed public sentences: probes travel with the adapter, so they must never hold a row.
const questions = [
  'A patient has had pain that moved from the navel to the lower right abdomen, with fever and nausea. What is the most likely diagnosis?',
  '患者转移性右下腹痛，伴发热和恶心，最可能的诊断是什么？',
];

const randomProbeTokens = 48;

/**
 * Largest mean difference between the training forward's loss and the saved adapter's, per probe. The adapter is scored on the CPU: a trainer there runs the
 * same kernels, and bf16 batches differ in rounding only; one on a GPU also rounds activations to bf16 (0.01 was seen on the golden models).
 */
const trainerTolerance = { cpu: 0.02, cuda: 0.04 };

/** Token ids from a fixed linear congruential stream: they reach rows of the vocabulary that sentences do not. */
function randomIds(vocabularySize: number): Uint32Array {
  let state = 20_240_607;
  return Uint32Array.from({ length: randomProbeTokens }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * vocabularySize);
  });
}

/** Prompts of the job's own template around the fixed questions, and one sequence of random ids. */
export async function probeTokens(modelDir: string, template: string, vocabularySize: number): Promise<Uint32Array[]> {
  const tokenizer = await loadTokenizer(modelDir);
  const resolved = resolveCanonicalTemplate(template, tokenizer);
  const prompts = questions.map((question) => {
    const input =
      resolved.kind === 'chat'
        ? [{ role: 'user' as const, content: question }]
        : { question, instruction: question, input: '' };
    return resolved.renderPrompt(input).segments;
  });
  const encoded = await encodeSegments(tokenizer, prompts);
  return [...encoded.map(({ ids }) => ids), randomIds(vocabularySize)].filter((ids) => ids.length >= 2);
}

/**
 * Scores every probe with the adapter as it was saved, and compares it with the training forward, whose mean loss over the same tokens must agree:
 * what is served is what was trained. Failure `internal` EXPORT_MISMATCH if it is not.
 */
export async function computeProbes(
  model: Model,
  adapter: Adapter,
  trainer: Trainer,
  sequences: readonly Uint32Array[],
  device: 'cpu' | 'cuda',
  signal: AbortSignal,
): Promise<Probe[]> {
  const probes: Probe[] = [];
  for (const tokens of sequences) {
    const logprobs = await model.score({ tokens, adapter, signal });
    const mean = -logprobs.reduce((sum, value) => sum + value, 0) / logprobs.length;
    const trained = await trainer.evaluate(
      [
        {
          inputIds: tokens,
          lossMask: new Uint8Array(tokens.length).fill(1),
          rowOffsets: Uint32Array.of(0, tokens.length),
        },
      ],
      signal,
    );
    if (!(Math.abs(trained.loss - mean) <= trainerTolerance[device])) {
      throw new Failure('internal', `the saved adapter scores a probe at ${mean}, the trainer at ${trained.loss}`, {
        reason: 'EXPORT_MISMATCH',
      });
    }
    probes.push({ tokens: [...tokens], logprobs: [...logprobs] });
  }
  return probes;
}
