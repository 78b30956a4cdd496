#include "cuda/infer/runner_memory.h"

#include <algorithm>
#include <array>
#include <iomanip>
#include <sstream>

#include "core/error.h"
#include "cuda/infer/device_kv.h"
#include "cuda/infer/device_ropes.h"
#include "cuda/ops/paged_attention.h"
#include "cuda/ops/sample.h"
#include "model/forward.h"

namespace engine::cuda {
namespace {

constexpr std::int64_t kAdapterRoom = std::int64_t{6} << 30;  // of 7B adapters of rank 16 on all products, about 75
constexpr std::int64_t kWantedRows = 64;                      // logits at once
constexpr std::int64_t kAttentionRows = 256;                  // whose parts are joined at once, at most
constexpr std::int64_t kWorkingTokens = 4096;                 // of each sequence: copies of products are kept only beside a cache for as many

bool any_nf4(const BaseFormat& format) {
  return std::ranges::any_of(format, [](const auto& layer) { return std::ranges::any_of(layer, &WeightFormat::nf4); });
}

std::int64_t attention_workspace(const ModelSpec& spec, std::int64_t rows) {
  std::int64_t most = 0;
  for (std::int64_t layer = 0; layer < spec.layers; ++layer)
    most = std::max(most, paged_attention_workspace(attention_shape(spec, layer), rows, (spec.context + kPageTokens - 1) / kPageTokens * kPageTokens));
  return most;
}

std::string gib(std::int64_t bytes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(3) << std::setw(9) << static_cast<double>(bytes) / (1 << 30) << " GiB";
  return std::move(out).str();
}

}  // namespace

std::int64_t decoded_bytes(const Geometry& geometry, const BaseFormat& format) {
  std::int64_t bytes = 0;
  for (const auto& layer : format)
    for (const GroupShape& group : geometry.groups)
      if (layer[static_cast<std::size_t>(group.parts.front().projection)].nf4) bytes += aligned_bytes(group.elements() * static_cast<std::int64_t>(sizeof(bf16)));
  return bytes;
}

StepSizes largest_step(const ModelSpec& spec, const RunnerOptions& options) {
  const std::int64_t tiles = options.max_rows / kPagedTile + options.max_sequences + 1;
  // Tables are as wide as the next power of two of the longest sequence.
  std::int64_t stride = 1;
  while (stride * kPageTokens < spec.context) stride *= 2;
  return {options.max_rows, options.max_sequences, stride, tiles, options.max_rows};
}

RunnerMemory RunnerMemory::take(DeviceArena& arena, const ModelSpec& spec, const Geometry& geometry, const BaseFormat& format, const RunnerOptions& options,
                                const Choices& choices) {
  RunnerMemory memory;
  memory.weights = DeviceWeights::take(arena, spec, geometry, format, Nf4Layout::packed);
  memory.embedding = spec.tied ? memory.weights.head : arena.take<bf16>(spec.vocab * spec.hidden);
  const std::int64_t rows = options.max_rows;
  StepBuffers& b = memory.buffers;
  b.x = arena.take<bf16>(rows * spec.hidden);
  b.normed = arena.take<bf16>(rows * spec.hidden);
  b.qkv = arena.take<bf16>(rows * geometry[Group::qkv].outputs);
  b.attention = arena.take<bf16>(rows * geometry[Group::o].inputs);
  b.gate_up = arena.take<bf16>(rows * geometry[Group::gate_up].outputs);
  b.gated = arena.take<bf16>(rows * spec.ffn);
  b.sub = spec.sandwich_norms ? arena.take<bf16>(rows * spec.hidden) : nullptr;
  b.low = arena.take<bf16>(rows * 3 * choices.most_ranks);
  b.head_rstd = spec.qk_norm ? arena.take<float>(rows * (spec.heads + spec.kv_heads)) : nullptr;
  b.scratch = !choices.decoded && any_nf4(format) ? arena.take<bf16>(geometry.largest_elements()) : nullptr;
  b.gemv_workspace_bytes = nf4_gemv_workspace(kGemvRows, std::max({spec.hidden, spec.ffn, geometry[Group::o].inputs}));
  b.gemv_workspace = arena.take_bytes(b.gemv_workspace_bytes);
  b.attention_rows = std::min(rows, std::clamp<std::int64_t>(options.max_sequences, kWantedRows, kAttentionRows));
  b.attention_workspace_bytes = attention_workspace(spec, b.attention_rows);
  b.attention_workspace = arena.take_bytes(b.attention_workspace_bytes);
  const std::int64_t prefill_bytes = options.order == SumOrder::fastest ? paged_prefill_workspace(attention_shape(spec, 0)) : 0;  // with one order rows come singly
  b.prefill_workspace = prefill_bytes > 0 ? arena.take_bytes(prefill_bytes) : nullptr;
  b.wanted_rows = std::min(rows, std::max(kWantedRows, options.max_sequences));
  b.last = arena.take<bf16>(b.wanted_rows * spec.hidden);
  b.logits = arena.take<float>(b.wanted_rows * spec.vocab);
  b.sample_workspace = arena.take_bytes(sample_workspace(b.wanted_rows, spec.vocab));
  b.tokens = arena.take<std::uint32_t>(rows);
  b.logprobs = arena.take<float>(rows);
  b.scores = arena.take<float>(rows);
  b.input_bytes = RunnerInput::bytes(largest_step(spec, options));
  b.input = arena.take_bytes(b.input_bytes);
  return memory;
}

RunnerPlan plan_runner(const ModelSpec& spec, const Geometry& geometry, const BaseFormat& format, const RunnerOptions& options, std::int64_t free_bytes) {
  RunnerPlan plan;
  plan.budget = options.memory_budget > 0 ? options.memory_budget : std::max<std::int64_t>(0, free_bytes - kLeftFree);
  plan.tables = aligned_bytes(DeviceRopes::bytes(spec, options.max_rows)) + aligned_bytes(AdapterCache::table_bytes(spec.layers));
  const auto fixed = [&](bool decoded) {
    DeviceArena counter;
    RunnerMemory::take(counter, spec, geometry, format, options, {.decoded = decoded});
    return counter.used();
  };
  const std::int64_t block = DeviceKv::block_bytes(spec);
  const std::int64_t context_blocks = (spec.context + DeviceKv::kBlockTokens - 1) / DeviceKv::kBlockTokens;
  const std::int64_t working_blocks = std::min(context_blocks, kWorkingTokens / DeviceKv::kBlockTokens);
  const std::int64_t most_kv = (options.max_sequences * context_blocks + 1) * block;  // more can never be used at once; remembered text may fill it
  const std::int64_t working_kv = options.kv_bytes > 0 ? options.kv_bytes : (options.max_sequences * working_blocks + 1) * block;

  plan.fixed = fixed(false);
  std::int64_t left = plan.budget - plan.fixed - plan.tables;
  const std::int64_t least_kv = options.kv_bytes > 0 ? options.kv_bytes : 2 * block;
  require(Code::oom, left >= least_kv, "generation needs ", plan.fixed + plan.tables + least_kv, " bytes of device memory at least: ", plan.fixed, " for weights and a step of ",
          options.max_rows, " rows, ", plan.tables, " for tables, ", least_kv, " for keys and values; the budget is ", plan.budget);
  plan.adapters = std::min(kAdapterRoom, left / 8);
  left -= plan.adapters;
  const std::int64_t copies = options.keep_decoded && options.order == SumOrder::fastest ? decoded_bytes(geometry, format) : 0;
  if (copies > 0 && left + plan.fixed - fixed(true) - copies >= working_kv) {
    plan.decoded = copies;
    left += plan.fixed - fixed(true) - copies;
    plan.fixed = fixed(true);
  }
  plan.kv = options.kv_bytes > 0 ? options.kv_bytes : std::min(left, most_kv);
  if (options.kv_bytes > left) {  // what was set aside for adapters is theirs only where keys and values do not need it
    plan.adapters -= options.kv_bytes - left;
  }
  plan.table = text("weights and buffers  ", gib(plan.fixed), "\ntables               ", gib(plan.tables), "\nbf16 copies          ", gib(plan.decoded), "\nadapters, at most    ",
                    gib(plan.adapters), "\nkeys and values      ", gib(plan.kv), "  (", plan.kv / block - 1, " blocks of ", DeviceKv::kBlockTokens, " tokens)\nbudget               ",
                    gib(plan.budget), "\n");
  return plan;
}

}  // namespace engine::cuda
