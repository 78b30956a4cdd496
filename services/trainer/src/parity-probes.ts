import type { Trainer } from '@medmesh/engine';
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

/** Largest mean difference between the training forward's loss and the saved adapter's, per probe: on one device they differ in rounding only. */
const trainerTolerance = 0.02;

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
 * Scores every probe with the adapter as it was saved into `folder`, where the trainer runs, and compares it with the training forward, whose mean loss
 * over the same tokens must agree: what is served is what was trained. Failure `internal` EXPORT_MISMATCH if it is not.
 */
export async function computeProbes(
  trainer: Trainer,
  folder: string,
  sequences: Uint32Array[],
  signal: AbortSignal,
): Promise<Probe[]> {
  const scores = await trainer.scoreAdapter(folder, sequences, signal);
  const probes: Probe[] = [];
  for (const [probe, tokens] of sequences.entries()) {
    const logprobs = scores[probe] ?? new Float32Array();
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
    if (!(Math.abs(trained.loss - mean) <= trainerTolerance)) {
      throw new Failure('internal', `the saved adapter scores a probe at ${mean}, the trainer at ${trained.loss}`, {
        reason: 'EXPORT_MISMATCH',
      });
    }
    probes.push({ tokens: [...tokens], logprobs: [...logprobs] });
  }
  return probes;
}
