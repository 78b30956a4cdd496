// trainer_case.h: test support: the golden models on the device, beside the CPU's trainer.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/rng.h"
#include "core/staged_output.h"
#include "core/test.h"
#include "cuda/train/cuda_trainer.h"
#include "infer/generation_case.h"
#include "model/golden_case.h"
#include "train/trainer.h"

namespace engine::cuda::test {

using engine::test::GoldenCase;
using engine::test::TempDir;

struct PackedRows {
  std::vector<std::uint32_t> ids, offsets{0};
  std::vector<std::uint8_t> mask;
  void add(const std::vector<std::uint32_t>& tokens, std::size_t masked) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      ids.push_back(tokens[i]);
      mask.push_back(i >= masked ? 1 : 0);
    }
    offsets.push_back(static_cast<std::uint32_t>(ids.size()));
  }
  MicroBatch view() const { return {ids, mask, offsets}; }
};

using engine::test::family;

// Two micro-batches: one row, and two packed ones.
inline std::vector<PackedRows> two_micros(const GoldenCase& c) {
  std::vector<PackedRows> micros(2);
  micros[0].add(c.sequences[0], 4);
  micros[1].add(c.sequences[1], 2);
  micros[1].add(c.sequences[2], 4);
  return micros;
}

inline std::vector<MicroBatch> views(const std::vector<PackedRows>& micros) {
  std::vector<MicroBatch> result;
  for (const PackedRows& micro : micros) result.push_back(micro.view());
  return result;
}

// A golden model whose blocks are repeated until there are `layers`: enough of them for memory plans to differ. Written into `dir`.
inline GoldenCase deepened(GoldenCase c, std::int64_t layers, const std::filesystem::path& dir) {
  const SafetensorsFile file(c.dir / "model.safetensors");
  Json config = read_json(c.dir / "config.json");
  const std::int64_t had = config.at("num_hidden_layers").get<std::int64_t>();
  config["num_hidden_layers"] = layers;
  if (config.contains("layer_types")) {
    const Json types = config["layer_types"];
    config["layer_types"] = Json::array();
    for (std::int64_t l = 0; l < layers; ++l) config["layer_types"].push_back(types.at(static_cast<std::size_t>(l % had)));
  }
  std::vector<NamedTensor> tensors;
  const std::string prefix = "model.layers.";
  for (const TensorView& tensor : file.tensors()) {
    if (!tensor.name.starts_with(prefix)) {
      tensors.push_back({{tensor.name, tensor.dtype, tensor.shape}, tensor.data});
      continue;
    }
    const std::size_t dot = tensor.name.find('.', prefix.size());
    const std::int64_t number = std::stoll(tensor.name.substr(prefix.size(), dot - prefix.size()));
    for (std::int64_t l = number; l < layers; l += had) tensors.push_back({{prefix + std::to_string(l) + tensor.name.substr(dot), tensor.dtype, tensor.shape}, tensor.data});
  }
  std::filesystem::create_directories(dir);
  write_file(dir / "config.json", config.dump());
  write_safetensors(dir / "model.safetensors", tensors, {{"format", "pt"}});
  c.dir = dir;
  return c;
}

// A golden model with half as many heads of twice the width: the same weights, another model, which has no reference but the CPU. Written into `dir`.
inline GoldenCase with_wide_heads(GoldenCase c, const std::filesystem::path& dir) {
  Json config = read_json(c.dir / "config.json");
  for (const char* heads : {"num_attention_heads", "num_key_value_heads"}) config[heads] = config.at(heads).get<std::int64_t>() / 2;
  std::filesystem::create_directories(dir);
  write_file(dir / "config.json", config.dump());
  std::filesystem::copy_file(c.dir / "model.safetensors", dir / "model.safetensors");
  c.dir = dir;
  return c;
}

inline std::shared_ptr<Model> load(const GoldenCase& c, Compute compute = Compute::bf16, QuantizeOnLoad quantize = QuantizeOnLoad::nf4) {
  return std::make_shared<Model>(c.dir, LoadOptions{quantize, compute, 2});
}

inline TrainerOptions options_of(OptimizerKind kind = OptimizerKind::adamw_8bit) {
  TrainerOptions options;
  options.lora = LoraConfig{8, 16, 0, false, known_target_modules(), ""};
  options.optimizer.kind = kind;
  options.optimizer.weight_decay = 0.01;
  options.schedule = {ScheduleKind::linear, 2, 20, 2e-3};
  options.seed = 3407;
  options.memory_budget = std::int64_t{1} << 30;
  return options;
}

// An adapter whose B is not zero, so that every gradient is worth comparing.
inline void write_random_adapter(const ModelSpec& spec, const LoraConfig& config, const std::filesystem::path& dir) {
  LoraAdapter adapter(spec, config);
  const Philox random{11, 0};
  for (std::int64_t i = 0; i < adapter.size(); ++i) adapter.data()[i] = 0.1f * (2.0f * random.uniform(static_cast<std::uint64_t>(i)) - 1.0f);
  std::filesystem::create_directories(dir);
  adapter.write(dir, "");
}

inline std::unique_ptr<CudaTrainer> device_trainer(const std::shared_ptr<Model>& model, const TrainerOptions& options, std::vector<int> devices = {0}) {
  return std::make_unique<CudaTrainer>(TrainingBase{model, model->spec(), model->weights()}, devices, options);
}

inline std::vector<float> all_values(const std::filesystem::path& file) {
  const SafetensorsFile tensors(file);
  std::vector<float> values;
  for (const TensorView& tensor : tensors.tensors()) {
    const std::vector<float> part = engine::test::read_tensor(tensors, tensor.name);
    values.insert(values.end(), part.begin(), part.end());
  }
  return values;
}

inline std::vector<float> gradients_of(const AnyTrainer& trainer) {
  const TempDir dir;
  trainer.save_gradients(dir / "gradients.safetensors");
  return all_values(dir / "gradients.safetensors");
}

inline std::vector<float> values_of(const AnyTrainer& trainer) {
  const TempDir dir;
  trainer.save(dir / "adapter", "");
  return all_values(dir / "adapter/adapter_model.safetensors");
}

inline double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ab += double{a[i]} * double{b[i]};
    aa += double{a[i]} * double{a[i]};
    bb += double{b[i]} * double{b[i]};
  }
  return ab / std::sqrt(aa * bb);
}

}  // namespace engine::cuda::test
