/** What one job may ask for. Above it, a request is a mistake more often than a wish. */
export const limits = {
  maxRank: 256,
  maxRowTokens: 131_072,
  maxSteps: 10_000_000,
  maxMicroBatchRows: 1_024,
  maxAccumulation: 65_536,
  maxLabels: 64,
  maxDatasets: 64,
} as const;

/** The modules that may be trained whole. */
export const wholeModules = ['embed_tokens', 'lm_head'] as const;

/** The projections of a decoder block that an adapter may target. */
export const targetModules = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const;
