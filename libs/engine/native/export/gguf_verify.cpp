#include "export/gguf_verify.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"
#include "export/gguf_logits.h"
#include "export/gguf_plan.h"
#include "formats/gguf_blocks.h"
#include "formats/gguf_file.h"
#include "formats/hf_folder.h"
#include "formats/peft_adapter.h"
#include "formats/plain_weights.h"
#include "model/weights.h"

namespace engine {
namespace {

constexpr std::int64_t kChunk = std::int64_t{1} << 22;  // weights at a time: 16 MiB as f32

std::optional<GgufParity> recorded_parity(const GgufFile& file) {
  const auto number = [&](const char* name) { return file.get<double>(std::string("medmesh.parity.") + name); };
  const auto* tokens = file.get<std::uint32_t>("medmesh.parity.probe_tokens");
  const double* numbers[] = {number("weight_mean"), number("weight_max"), number("logprob_mean"), number("logprob_max"), number("kl_mean"), number("top1_agreement")};
  if (tokens == nullptr || std::ranges::count(numbers, nullptr) > 0) return std::nullopt;
  return GgufParity{*numbers[0], *numbers[1], *tokens, *numbers[2], *numbers[3], *numbers[4], *numbers[5]};
}

// The distance of one tensor's numbers in the file from those they were made of.
void compare_tensor(const Exec& ex, const PlainWeights& weights, const GgufTensorPlan& plan, const GgufFile& file, WeightDistance& distance, const CancelFlag* cancel) {
  const PlainWeight& weight = weights.at(plan.source.name);
  const GgufTensor& tensor = planned_tensor(file, plan);
  const bool vector = plan.source.shape.size() == 1;
  const std::int64_t all = vector ? 1 : plan.source.shape[0], cols = plan.source.shape.back();
  const std::int64_t step = vector ? 1 : std::max<std::int64_t>(1, kChunk / cols / plan.row_granule()) * plan.row_granule();
  const GgmlLayout layout = ggml_layout(tensor.type);
  std::vector<float> wanted, stored;
  distance.begin_tensor();
  for (std::int64_t first = 0; first < all; first += step) {
    check_cancelled(cancel);
    const std::int64_t rows = std::min(step, all - first), count = rows * cols;
    wanted.resize(static_cast<std::size_t>(count));
    stored.resize(static_cast<std::size_t>(count));
    weights.read_rows(ex, weight, first, rows, wanted.data());
    const auto [view_rows, view_cols] = row_view(plan, rows);
    plan.to_file(wanted.data(), view_rows, view_cols);
    ggml_dequantize(ex, tensor.type, tensor.data + first * cols / layout.values * layout.bytes, count, stored.data());
    distance.add(wanted.data(), stored.data(), count);
  }
  distance.end_tensor();
  weights.release(weight);
  file.release(tensor);
}

// log p of each token after the first.
std::vector<float> next_logprobs(std::span<const std::uint32_t> ids, std::int64_t vocab, const std::vector<float>& logits) {
  std::vector<float> result;
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    const auto row = std::span(logits).subspan(i * static_cast<std::size_t>(vocab), static_cast<std::size_t>(vocab));
    const double most = std::ranges::max(row);
    double sum = 0;
    for (const float logit : row) sum += std::exp(logit - most);
    result.push_back(static_cast<float>(row[ids[i + 1]] - most - std::log(sum)));
  }
  return result;
}

}  // namespace

VerifiedGguf verify_gguf(const Exec& ex, const std::filesystem::path& model_dir, const std::optional<std::filesystem::path>& adapter_dir,
                         const std::filesystem::path& path, std::span<const std::vector<std::uint32_t>> sequences, const CancelFlag* cancel) {
  const HfFolder model(model_dir);
  ModelSpec spec = read_spec(model.config());
  check_tensors(spec, model);
  std::optional<PeftAdapter> adapter;
  if (adapter_dir) adapter.emplace(*adapter_dir);
  const PlainWeights weights(model, adapter ? &*adapter : nullptr);
  if (weights.unties_head()) spec.tied = false;
  // Types are the file's own; names, shapes and orders are the same in every recipe.
  const GgufPlan plan = plan_gguf(spec, GgufRecipe::f16);
  const GgufFile file(path);
  const auto* architecture = file.get<std::string>("general.architecture");
  require(architecture != nullptr && *architecture == plan.architecture, "the file is a model of ", architecture == nullptr ? "no named architecture" : *architecture,
          "; the source is one of ", plan.architecture);

  VerifiedGguf result;
  result.recorded = recorded_parity(file);
  WeightDistance distance;
  for (const GgufTensorPlan& tensor : plan.tensors) compare_tensor(ex, weights, tensor, file, distance, cancel);
  result.measured.weight_mean = distance.mean();
  result.measured.weight_max = distance.max();

  const OnWeights ignore = [](std::int64_t) {};
  const std::vector<std::uint32_t> probe = export_probe(spec.vocab, plan.context);
  const std::vector<float> source = source_logits(ex, spec, weights, probe, ignore, cancel);
  compare_logits(probe, spec.vocab, source, file_logits(ex, spec, plan, file, probe, ignore, cancel), result.measured);
  for (const std::vector<std::uint32_t>& ids : sequences) {
    require(ids.size() >= 2, "a sequence to score has ", ids.size(), " tokens; give two or more");
    result.logprobs.push_back(next_logprobs(ids, spec.vocab, file_logits(ex, spec, plan, file, ids, ignore, cancel)));
  }
  return result;
}

}  // namespace engine
