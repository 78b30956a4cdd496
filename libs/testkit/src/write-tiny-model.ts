import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { seededRandom } from './seeded-random.ts';
import { type TensorSource, type WrittenDtype, writeSafetensors } from './write-safetensors.ts';

export type TinyModelOptions = {
  /** Qwen2 has biases on q, k and v; Llama has none. */
  family?: 'qwen2' | 'llama';
  layers?: number;
  hidden?: number;
  /** Width between the two halves of the gated feed-forward. Default: 2 × hidden. */
  intermediate?: number;
  heads?: number;
  /** Fewer than `heads` is grouped-query attention. */
  kvHeads?: number;
  vocab?: number;
  /** Whether the output projection is the embedding. */
  tied?: boolean;
  dtype?: WrittenDtype;
  /** Standard deviation of the weights. */
  deviation?: number;
  contextLength?: number;
  eosTokenId?: number;
  seed?: number;
};

export type TinyModel = { dir: string; parameterCount: number; config: Record<string, unknown> };

/** Writes a Hugging Face folder (config.json, model.safetensors) with random weights, the same for the same options. No tokenizer. */
export function writeTinyModel(dir: string, options: TinyModelOptions = {}): TinyModel {
  const {
    family = 'qwen2',
    layers = 2,
    hidden = 32,
    heads = 4,
    kvHeads = 2,
    vocab = 128,
    tied = true,
    dtype = 'F32',
    seed = 1,
  } = options;
  const { intermediate = 2 * hidden, deviation = 0.05, contextLength = 512, eosTokenId = 0 } = options;
  if (hidden % heads !== 0 || heads % kvHeads !== 0) {
    throw new Error(`hidden ${hidden} must be a multiple of heads ${heads}, and that of kvHeads ${kvHeads}`);
  }
  const headSize = hidden / heads;
  const random = seededRandom(seed);
  const tensors: TensorSource[] = [];
  const filled = (name: string, shape: number[], value: () => number) => {
    const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
    for (let i = 0; i < values.length; i += 1) values[i] = value();
    tensors.push({ name, dtype, shape, values });
  };
  const weight = (name: string, ...shape: number[]) => filled(name, shape, () => deviation * random.normal());
  // Near one, but not one: a norm whose weight is ignored must show.
  const norm = (name: string) => filled(name, [hidden], () => 1 + deviation * random.normal());

  weight('model.embed_tokens.weight', vocab, hidden);
  for (let layer = 0; layer < layers; layer += 1) {
    const prefix = `model.layers.${layer}`;
    norm(`${prefix}.input_layernorm.weight`);
    for (const [name, rows] of [
      ['q', heads],
      ['k', kvHeads],
      ['v', kvHeads],
    ] as const) {
      weight(`${prefix}.self_attn.${name}_proj.weight`, rows * headSize, hidden);
      if (family === 'qwen2') weight(`${prefix}.self_attn.${name}_proj.bias`, rows * headSize);
    }
    weight(`${prefix}.self_attn.o_proj.weight`, hidden, heads * headSize);
    norm(`${prefix}.post_attention_layernorm.weight`);
    weight(`${prefix}.mlp.gate_proj.weight`, intermediate, hidden);
    weight(`${prefix}.mlp.up_proj.weight`, intermediate, hidden);
    weight(`${prefix}.mlp.down_proj.weight`, hidden, intermediate);
  }
  norm('model.norm.weight');
  if (!tied) weight('lm_head.weight', vocab, hidden);

  const config = {
    architectures: [family === 'qwen2' ? 'Qwen2ForCausalLM' : 'LlamaForCausalLM'],
    model_type: family,
    hidden_size: hidden,
    intermediate_size: intermediate,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    vocab_size: vocab,
    max_position_embeddings: contextLength,
    hidden_act: 'silu',
    rms_norm_eps: 1e-6,
    rope_theta: 10_000,
    tie_word_embeddings: tied,
    torch_dtype: dtype === 'F32' ? 'float32' : 'bfloat16',
    eos_token_id: eosTokenId,
    ...(family === 'llama' ? { attention_bias: false, mlp_bias: false } : { use_sliding_window: false }),
  };
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
  writeSafetensors(join(dir, 'model.safetensors'), tensors);
  return { dir, config, parameterCount: tensors.reduce((sum, tensor) => sum + tensor.values.length, 0) };
}
