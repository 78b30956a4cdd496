// memory_plan.h: how a training run spends a budget of device memory, decided before any of it is taken.
//   Choices are tried from the one that takes most memory to the one that takes least; the first that fits is used, so more memory never makes a run
//   slower. On the way up, in the order of what a byte buys (a byte of activations saves `hidden` floating-point operations, whatever the tensor):
//   inputs of layers come back from host memory; scratch for every product, so that weights are decoded ahead; more rows of logits at once; layers keep
//   their activations, the last ones first, because their backward comes first; the embedding moves to the device; layers keep decoded weights.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/train/run_memory.h"
#include "train/any_trainer.h"

namespace engine::cuda {

struct MemoryUse {
  std::int64_t fixed = 0, step = 0;  // bytes of the two arenas
  std::int64_t library = 0;          // workspace of the products
  std::int64_t pinned = 0;           // host memory
  std::int64_t device() const noexcept { return fixed + step + library; }
};

struct MemoryPlan {
  MemoryChoice choice;
  MemoryUse use;
  std::int64_t tokens = 0, budget = 0;

  TrainingPlan describe(const RunShape& shape) const;
};

// Choices in the order of rising speed. None is faster than a later one.
std::vector<MemoryChoice> memory_choices(const RunShape& shape, std::int64_t tokens);
// Exactly what a run with this choice allocates.
MemoryUse measure(const RunShape& shape, const MemoryChoice& choice, std::int64_t tokens);
// The fastest choice within `budget` bytes. Throws oom, saying how much is missing.
MemoryPlan plan_memory(const RunShape& shape, std::int64_t tokens, std::int64_t budget);

// Micro-batches are planned in these steps, so that few plans serve all lengths: multiples of 256 up to 4096 tokens, of 1024 above.
constexpr std::int64_t token_bucket(std::int64_t tokens) {
  const std::int64_t step = tokens <= 4096 ? 256 : 1024;
  return (tokens + step - 1) / step * step;
}

}  // namespace engine::cuda
