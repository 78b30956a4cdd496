/** The learning rate that so small a base needs; the tutorial's 2e-4 is for models a thousand times larger. */
export const demoLearningRate = 3e-3;

/** The tutorial's fine-tuning settings, but for the learning rate. */
export const demoFineTuning = {
  steps: 60,
  gradientAccumulation: 2,
  warmupSteps: 5,
  seed: 3407,
  optimizer: 'adamw_8bit',
  weightDecay: 0.01,
  maxGradNorm: 1,
  lora: {
    rank: 16,
    alpha: 16,
    dropout: 0,
    targetModules: ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
  },
} as const;
