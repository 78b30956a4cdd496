#include "cuda/train/memory_plan.h"

#include <algorithm>
#include <iomanip>
#include <sstream>

#include "core/error.h"
#include "cuda/ops/gemm.h"
#include "cuda/train/input_copies.h"

namespace engine::cuda {
namespace {

constexpr std::int64_t kLibraryBytes = 2 * Gemm::workspace_bytes();  // of the products on the way and beside it

constexpr std::int64_t kFewLossRows = 256, kManyLossRows = 1024;

std::string mebibytes(std::int64_t bytes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1) << static_cast<double>(bytes) / (1 << 20);
  return std::move(out).str();
}

std::int64_t pinned_bytes(const RunShape& shape, const MemoryChoice& choice, std::int64_t tokens) {
  const ModelSpec& spec = shape.spec;
  std::int64_t bytes = 2 * StepInput::bytes(spec, tokens) + static_cast<std::int64_t>(sizeof(StepScalars) + shape.runs.size() * sizeof(AdamWConstants));
  bytes += InputCopies::host_bytes(choice.offloaded, tokens, spec.hidden);
  if (!choice.embedding_on_device && shape.base_table()) bytes += spec.vocab * spec.hidden * static_cast<std::int64_t>(sizeof(bf16));
  return bytes;
}

std::string table_of(const RunShape& shape, const MemoryPlan& plan) {
  Ledger fixed, step;
  DeviceArena counting_fixed, counting_step;
  FixedMemory::take(counting_fixed, shape, &fixed);
  StepMemory::take(counting_step, shape, plan.choice, plan.tokens, &step);
  std::ostringstream out;
  const auto line = [&](const std::string& name, std::int64_t bytes) {
    out << std::left << std::setw(32) << name << std::right << std::setw(12) << mebibytes(bytes) << " MiB\n";
  };
  for (const Ledger* ledger : {&fixed, &step})
    for (const Ledger::Part& part : ledger->parts)
      if (part.bytes > 0) line(part.name, part.bytes);
  line("workspace of the products", plan.use.library);
  line("in all", plan.use.device());
  line("of a budget of", plan.budget);
  line("pinned host memory", plan.use.pinned);
  return std::move(out).str();
}

}  // namespace

std::vector<MemoryChoice> memory_choices(const RunShape& shape, std::int64_t tokens) {
  const std::int64_t layers = shape.spec.layers, trained = shape.trained_layers();
  std::vector<MemoryChoice> choices;
  MemoryChoice choice;
  choice.loss_rows = std::min(kFewLossRows, tokens);
  choice.embedding_on_device = !shape.base_table();
  // Fewer layers than buffers on the way would save nothing.
  for (choice.offloaded = trained; choice.offloaded > kOffloadBuffers; --choice.offloaded) choices.push_back(choice);
  choice.offloaded = 0;
  choices.push_back(choice);
  choice.scratch_for_each_group = true;
  choices.push_back(choice);
  choice.loss_rows = std::min(kManyLossRows, tokens);
  choices.push_back(choice);
  while (choice.kept < trained) {
    choice.partly = 1;
    choices.push_back(choice);
    choice.partly = 0;
    ++choice.kept;
    choices.push_back(choice);
  }
  choice.embedding_on_device = true;
  choices.push_back(choice);
  // Layers that are not NF4 hold their weights ready anyway.
  const bool nf4 = std::ranges::any_of(shape.format, [](const auto& layer) { return std::ranges::any_of(layer, [](const WeightFormat& weight) { return weight.nf4; }); });
  while (nf4 && choice.decoded < layers) {
    ++choice.decoded;
    choices.push_back(choice);
  }
  return choices;
}

MemoryUse measure(const RunShape& shape, const MemoryChoice& choice, std::int64_t tokens) {
  DeviceArena fixed, step;
  FixedMemory::take(fixed, shape);
  StepMemory::take(step, shape, choice, tokens);
  return {fixed.peak(), step.peak(), kLibraryBytes, pinned_bytes(shape, choice, tokens)};
}

MemoryPlan plan_memory(const RunShape& shape, std::int64_t tokens, std::int64_t budget) {
  const std::vector<MemoryChoice> choices = memory_choices(shape, tokens);
  std::int64_t least = 0;
  for (auto choice = choices.rbegin(); choice != choices.rend(); ++choice) {
    const MemoryPlan plan{*choice, measure(shape, *choice, tokens), tokens, budget};
    if (plan.use.device() <= budget) return plan;
    least = least == 0 ? plan.use.device() : std::min(least, plan.use.device());
  }
  fail(Code::oom, "training with micro-batches of ", tokens, " tokens needs at least ", mebibytes(least), " MiB of device memory, ", mebibytes(least - budget),
       " MiB more than the budget of ", mebibytes(budget), " MiB; use smaller micro-batches, a smaller rank or a larger budget");
}

TrainingPlan MemoryPlan::describe(const RunShape& shape) const {
  TrainingPlan plan;
  plan.budget_bytes = budget;
  plan.device_bytes = use.device();
  plan.pinned_bytes = use.pinned;
  plan.tokens = tokens;
  plan.kept_layers = choice.kept;
  plan.partly_kept_layers = choice.partly;
  plan.offloaded_layers = choice.offloaded;
  plan.recomputed_layers = shape.trained_layers() - choice.kept - choice.partly - choice.offloaded;
  plan.decoded_layers = choice.decoded;
  plan.embedding_on_device = choice.embedding_on_device;
  plan.table = table_of(shape, *this);
  return plan;
}

}  // namespace engine::cuda
