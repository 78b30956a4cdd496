#include "export/gguf_export.h"

#include <algorithm>

#include "core/error.h"
#include "core/staged_output.h"
#include "core/version.h"
#include "export/gguf_logits.h"
#include "formats/gguf_blocks.h"
#include "formats/gguf_file.h"
#include "formats/gguf_tokenizer.h"
#include "formats/gguf_writer.h"
#include "formats/plain_weights.h"
#include "model/weights.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kChunk = std::int64_t{1} << 22;  // weights at a time: 16 MiB as f32
constexpr std::string_view kRopeFactors = "rope_freqs.weight";

// Parity numbers of the file's metadata, in the order they are written.
std::vector<std::pair<std::string, GgufValue>> parity_entries(const GgufParity& parity) {
  return {{"medmesh.parity.weight_mean", parity.weight_mean},
          {"medmesh.parity.weight_max", parity.weight_max},
          {"medmesh.parity.probe_tokens", static_cast<std::uint32_t>(parity.probe_tokens)},
          {"medmesh.parity.logprob_mean", parity.logprob_mean},
          {"medmesh.parity.logprob_max", parity.logprob_max},
          {"medmesh.parity.kl_mean", parity.kl_mean},
          {"medmesh.parity.top1_agreement", parity.top1_agreement}};
}

// Bytes of weights read, of three passes over the model: writing, and the two forward passes of the check.
class Progress {
 public:
  Progress(const GgufExportOptions& options, std::int64_t weights) : options_(options), total_(3 * 4 * weights) {}
  void add(std::int64_t values) {
    done_ = std::min(total_, done_ + 4 * values);
    if (options_.progress) options_.progress(done_, total_);
    check_cancelled(options_.cancel);
  }
  void end() {
    done_ = total_;
    if (options_.progress) options_.progress(done_, total_);
  }

 private:
  const GgufExportOptions& options_;
  std::int64_t done_ = 0, total_;
};

class Exporter {
 public:
  Exporter(const Exec& ex, const PlainWeights& weights, Progress& progress) : ex_(ex), weights_(weights), progress_(progress) {}

  void write(const GgufTensorPlan& tensor, GgufWriter& out, WeightDistance& distance) {
    const PlainWeight& weight = weights_.at(tensor.source.name);
    const bool vector = tensor.source.shape.size() == 1;
    const std::int64_t all = vector ? 1 : tensor.source.shape[0], cols = tensor.source.shape.back();
    // Whole heads where rows are interleaved.
    const std::int64_t step = vector ? 1 : std::max<std::int64_t>(1, kChunk / cols / tensor.row_granule()) * tensor.row_granule();
    const GgmlLayout layout = ggml_layout(tensor.type);
    std::int64_t written = 0;
    distance.begin_tensor();
    for (std::int64_t first = 0; first < all; first += step) {
      const std::int64_t rows = std::min(step, all - first), count = rows * cols, bytes = count / layout.values * layout.bytes;
      wanted_.resize(static_cast<std::size_t>(count));
      stored_.resize(static_cast<std::size_t>(count));
      blocks_.resize(static_cast<std::size_t>(bytes));
      weights_.read_rows(ex_, weight, first, rows, wanted_.data());
      const auto [view_rows, view_cols] = row_view(tensor, rows);
      tensor.to_file(wanted_.data(), view_rows, view_cols);
      try {
        ggml_quantize(ex_, tensor.type, wanted_.data(), count, blocks_.data());
      } catch (const Error& error) {
        if (error.code() != Code::corrupt && error.code() != Code::unsupported) throw;
        fail(error.code(), tensor.source.name, " ", error.message());
      }
      out.append(tensor.name, blocks_.data(), bytes);
      out.read(tensor.name, written, blocks_.data(), bytes);  // what is compared is what the file holds
      ggml_dequantize(ex_, tensor.type, blocks_.data(), count, stored_.data());
      distance.add(wanted_.data(), stored_.data(), count);
      written += bytes;
      progress_.add(count);
    }
    distance.end_tensor();
    weights_.release(weight);
  }

 private:
  const Exec& ex_;
  const PlainWeights& weights_;
  Progress& progress_;
  std::vector<float> wanted_, stored_;
  std::vector<std::uint8_t> blocks_;
};

std::vector<std::uint32_t> choose_probe(const GgufExportOptions& options, const ModelSpec& spec, std::int64_t context) {
  if (options.probe.empty()) return export_probe(spec.vocab, context);
  require(options.probe.size() >= 2, "the parity probe has one token; give at least two");
  return options.probe;
}

}  // namespace

ExportedGguf export_gguf(const Exec& ex, const fs::path& model_dir, const fs::path& out_path, const GgufExportOptions& options) {
  require(options.if_exists == IfExists::replace || !fs::exists(fs::symlink_status(out_path)), out_path.string(), " exists; remove it or choose another name");
  const HfFolder model(model_dir);
  ModelSpec spec = read_spec(model.config());
  check_tensors(spec, model);
  std::optional<PeftAdapter> adapter;
  if (options.adapter_dir) adapter.emplace(*options.adapter_dir);
  const PlainWeights weights(model, adapter ? &*adapter : nullptr);
  if (weights.unties_head()) spec.tied = false;
  const GgufPlan plan = plan_gguf(spec, options.recipe);

  ExportedGguf result;
  result.architecture = plan.architecture;
  result.context = plan.context;
  result.base = weights.any_nf4() ? "nf4_dequantized" : "stored";
  GgufMetadata metadata = plan.settings;
  metadata.emplace_back("general.name", options.name.empty() ? fs::absolute(model_dir).lexically_normal().filename().string() : options.name);
  result.tokenizer = add_folder_tokenizer(model_dir, model.config(), spec.vocab, metadata);
  metadata.emplace_back("medmesh.engine", std::string(engine_version()));
  metadata.emplace_back("medmesh.source", result.base);
  metadata.emplace_back("medmesh.adapter_merged", adapter.has_value());
  for (auto& entry : parity_entries({})) metadata.push_back(std::move(entry));

  std::vector<GgufTensorSpec> tensors;
  std::int64_t values = 0;
  if (!plan.rope_factors.empty())
    tensors.push_back({std::string(kRopeFactors), GgmlType::f32, {static_cast<std::int64_t>(plan.rope_factors.size())}});
  for (const GgufTensorPlan& tensor : plan.tensors) {
    tensors.push_back({tensor.name, tensor.type, tensor.source.shape});
    values += tensors.back().values();
  }
  result.tensors = static_cast<std::int64_t>(tensors.size());

  StagedFile staged(out_path);
  GgufWriter out(staged.path(), std::move(metadata), std::move(tensors));
  Progress progress(options, values);
  Exporter exporter(ex, weights, progress);
  WeightDistance distance;
  if (!plan.rope_factors.empty()) out.append(kRopeFactors, plan.rope_factors.data(), static_cast<std::int64_t>(plan.rope_factors.size() * sizeof(float)));
  for (const GgufTensorPlan& tensor : plan.tensors) exporter.write(tensor, out, distance);
  result.parity.weight_mean = distance.mean();
  result.parity.weight_max = distance.max();

  out.write_header();
  {
    const GgufFile file(staged.path());
    const std::vector<std::uint32_t> probe = choose_probe(options, spec, plan.context);
    const OnWeights on_weights = [&progress](std::int64_t values) { progress.add(values); };
    const std::vector<float> source = source_logits(ex, spec, weights, probe, on_weights, options.cancel);
    compare_logits(probe, spec.vocab, source, file_logits(ex, spec, plan, file, probe, on_weights, options.cancel), result.parity);
  }
  for (auto& [key, value] : parity_entries(result.parity)) out.set(key, value);
  out.finish();
  result.file_bytes = out.file_bytes();
  progress.end();
  check_cancelled(options.cancel);
  staged.commit();
  return result;
}

}  // namespace engine
