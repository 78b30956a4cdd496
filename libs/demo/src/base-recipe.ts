import { addedTokenId, endOfTextToken, vocabularySize } from './tokenizer-files.ts';

/** The longest sequence the base is declared for, in tokens. It is trained on rows of half that length. */
export const contextLength = 512;

/** config.json of the base: Qwen2's layout, 2.95 million parameters, the embedding table also the output layer. */
export const baseConfig = {
  architectures: ['Qwen2ForCausalLM'],
  model_type: 'qwen2',
  attention_dropout: 0,
  eos_token_id: addedTokenId(endOfTextToken),
  hidden_act: 'silu',
  hidden_size: 192,
  initializer_range: 0.02,
  intermediate_size: 512,
  max_position_embeddings: contextLength,
  num_attention_heads: 6,
  num_hidden_layers: 6,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_theta: 10_000,
  tie_word_embeddings: true,
  torch_dtype: 'bfloat16',
  use_cache: true,
  use_sliding_window: false,
  vocab_size: vocabularySize,
} as const;

/** generation_config.json of the base: greedy, ends with a document or a turn. */
export const baseGenerationConfig = {
  do_sample: false,
  eos_token_id: [addedTokenId(endOfTextToken), addedTokenId('<|im_end|>')],
  pad_token_id: addedTokenId(endOfTextToken),
} as const;

/** How the base is trained from scratch. Rows are the corpus cut into equal lengths; each is seen once. */
export const baseRecipe = {
  seed: 3407,
  steps: 1950,
  rowsPerStep: 8,
  tokensPerRow: 256,
  schedule: 'linear',
  learningRate: 3e-3,
  warmupSteps: 100,
  optimizer: 'adamw',
  beta1: 0.9,
  beta2: 0.95,
  weightDecay: 0.1,
  maxGradNorm: 1,
  compute: 'bf16',
} as const;

/** The corpus of the base has this seed; the sentences it is evaluated on have the next one. */
export const baseCorpusSeed = 1;
