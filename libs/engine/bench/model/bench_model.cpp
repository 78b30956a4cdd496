#include "model/bench_model.h"

#include <algorithm>
#include <map>
#include <vector>

#include "core/bf16.h"
#include "core/error.h"
#include "core/exec.h"
#include "core/rng.h"
#include "core/staged_output.h"
#include "formats/model_writer.h"
#include "formats/quantize_model.h"

namespace engine::bench {
namespace {

struct Shape {
  std::int64_t hidden, ffn, layers, heads, kv_heads, vocab;
  bool tied;
};

const std::map<std::string, Shape>& shapes() {
  static const std::map<std::string, Shape> all = {
      {"tiny", {128, 320, 2, 4, 2, 1000, true}},           {"0.5b", {896, 4864, 24, 14, 2, 151936, true}},
      {"1.5b", {1536, 8960, 28, 12, 2, 151936, true}},     {"3b", {2048, 11008, 36, 16, 2, 151936, true}},
      {"7b", {3584, 18944, 28, 28, 4, 152064, false}},
  };
  return all;
}

// Uniform with the standard deviation that such models are initialized with; norms are 1.
constexpr float kWidth = 0.02f * 1.7320508f;
constexpr std::int64_t kChunk = std::int64_t{1} << 20;

void write_random(const std::filesystem::path& dir, const std::string& config) {
  const ModelSpec spec = read_spec(parse_json(config, "config.json"));
  const std::vector<ParameterSpec> parameters = parameters_of(spec);
  std::vector<TensorGroup> groups;
  for (const ParameterSpec& parameter : parameters) groups.push_back({{{parameter.name, Dtype::bf16, parameter.shape}}, {}});
  ModelWriter out(dir, groups, {{"format", "pt"}});
  std::vector<bf16> values(static_cast<std::size_t>(kChunk));
  ThreadPool pool(available_threads());
  std::uint64_t stream = 0;
  for (const ParameterSpec& parameter : parameters) {
    const Philox random{3407, ++stream};
    const std::int64_t count = element_count(parameter.shape);
    for (std::int64_t first = 0; first < count; first += kChunk) {
      const std::int64_t size = std::min(kChunk, count - first);
      pool.for_ranges(size, 4096, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
          values[static_cast<std::size_t>(i)] =
              to_bf16(parameter.shape.size() == 1 ? 1.0f : kWidth * (2.0f * random.uniform(static_cast<std::uint64_t>(first + i)) - 1.0f));
      });
      out.append(parameter.name, values.data(), size * 2);
    }
  }
  out.finish();
  write_file(dir / "config.json", config);
}

}  // namespace

std::string shape_config(const std::string& name) {
  const auto found = shapes().find(name);
  require(found != shapes().end(), "no shape '", name, "'; use tiny, 0.5b, 1.5b, 3b or 7b");
  const Shape& s = found->second;
  const Json config = {{"architectures", {"Qwen2ForCausalLM"}}, {"model_type", "qwen2"},           {"vocab_size", s.vocab},
                       {"hidden_size", s.hidden},               {"intermediate_size", s.ffn},      {"num_hidden_layers", s.layers},
                       {"num_attention_heads", s.heads},        {"num_key_value_heads", s.kv_heads}, {"hidden_act", "silu"},
                       {"max_position_embeddings", 32768},      {"rms_norm_eps", 1e-6},            {"rope_theta", 1000000.0},
                       {"tie_word_embeddings", s.tied},         {"torch_dtype", "bfloat16"}};
  return config.dump(2) + "\n";
}

std::filesystem::path ensure_bf16_model(const std::filesystem::path& dir, const std::string& shape) {
  const std::filesystem::path folder = dir / "bf16";
  if (std::filesystem::exists(folder)) return folder;
  StagedDirectory staged(folder, IfExists::refuse);
  write_random(staged.path(), shape_config(shape));
  staged.commit();
  return folder;
}

std::filesystem::path ensure_nf4_model(const std::filesystem::path& dir, const std::string& shape) {
  const std::filesystem::path folder = dir / "nf4";
  if (std::filesystem::exists(folder)) return folder;
  ThreadPool pool(available_threads());
  quantize_model(make_exec(pool, Compute::bf16), ensure_bf16_model(dir, shape), folder, {});
  return folder;
}

Work work_of(const ModelSpec& spec, std::int64_t tokens) {
  const auto product = [](std::int64_t outputs, std::int64_t inputs) { return 2.0 * static_cast<double>(outputs) * static_cast<double>(inputs); };
  const double layer = product(2 * spec.q_size() + 2 * spec.kv_size(), spec.hidden) + product(3 * spec.ffn, spec.hidden);
  const auto n = static_cast<double>(tokens), layers = static_cast<double>(spec.layers);
  return {layers * layer, product(spec.vocab, spec.hidden), layers * 2.0 * n * n * static_cast<double>(spec.q_size())};
}

}  // namespace engine::bench
