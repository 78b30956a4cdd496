// Whole steps of a small model (2.9 M parameters, the demonstration base's shape): training on all weights and on an adapter over NF4, and
// generation. Prints time per step, tokens per second, and what the products alone would take at this machine's measured peak.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <latch>
#include <memory>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/staged_output.h"
#include "formats/safetensors.h"
#include "infer/generator.h"
#include "model/model.h"
#include "support/bench.h"
#include "train/trainer.h"

using namespace engine;

namespace {

constexpr const char* kConfig = R"({"model_type": "qwen2", "vocab_size": 4096, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
  "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
  "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "float32"})";

// A random model in a folder that goes with this object.
struct RandomModel {
  std::filesystem::path dir = std::filesystem::temp_directory_path() / ("medmesh-bench-" + std::to_string(std::hash<std::thread::id>{}(std::this_thread::get_id())));
  RandomModel() {
    std::filesystem::create_directories(dir);
    write_file(dir / "config.json", kConfig);
    const ModelSpec spec = read_spec(dir);
    std::vector<std::vector<float>> data;
    std::vector<NamedTensor> tensors;
    for (const ParameterSpec& parameter : parameters_of(spec)) {
      data.push_back(bench::values(element_count(parameter.shape), data.size()));
      for (float& value : data.back()) value = parameter.shape.size() == 1 ? 1.0f : 0.05f * value;
    }
    std::size_t i = 0;
    for (const ParameterSpec& parameter : parameters_of(spec)) tensors.push_back({{parameter.name, Dtype::f32, parameter.shape}, data[i++].data()});
    write_safetensors(dir / "model.safetensors", tensors, {});
  }
  ~RandomModel() { std::filesystem::remove_all(dir); }
};

struct Batch {
  std::vector<std::uint32_t> ids, offsets{0};
  std::vector<std::uint8_t> mask;
  Batch(std::int64_t rows, std::int64_t length) {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t i = 0; i < length; ++i) {
        ids.push_back(static_cast<std::uint32_t>((row * 7919 + i * 104729) % 4096));
        mask.push_back(1);
      }
      offsets.push_back(static_cast<std::uint32_t>(ids.size()));
    }
  }
  MicroBatch view() const { return {ids, mask, offsets}; }
};

void print(const char* what, double seconds, double tokens, double flops, double peak) {
  std::printf("%-52s %9.3f ms %10.0f tok/s   products at peak %8.3f ms (%4.1f %%)\n", what, seconds * 1e3, tokens / seconds, flops / peak * 1e3,
              100 * flops / peak / seconds);
}

void train(const RandomModel& random, const char* what, bool lora, const std::vector<Batch>& batches, Compute compute) {
  const auto model = std::make_shared<Model>(random.dir, LoadOptions{lora ? QuantizeOnLoad::nf4 : QuantizeOnLoad::none, compute, bench::thread_count()});
  TrainerOptions options;
  if (lora) options.lora = LoraConfig{16, 16, 0, false, known_target_modules(), ""};
  options.optimizer.kind = lora ? OptimizerKind::adamw_8bit : OptimizerKind::adamw;
  options.schedule = {ScheduleKind::constant, 0, 1 << 20, 1e-4};
  Trainer trainer(model, options);
  std::vector<MicroBatch> micros;
  double tokens = 0;
  for (const Batch& batch : batches) {
    micros.push_back(batch.view());
    tokens += static_cast<double>(batch.ids.size());
  }
  const double seconds = bench::best_time([&] { trainer.train_step(micros); }, 2.0);
  const double passes = lora ? 4.0 : 6.0;  // products of each weight with a token: forward 2, input gradient 2, weight gradient 2
  print(what, seconds, tokens, passes * static_cast<double>(model->info().parameter_count) * tokens, bench::floors(model->exec().pool).flops);
}

void decode(const RandomModel& random, const char* what, int sequences, Compute compute) {
  const auto model = std::make_shared<Model>(random.dir, LoadOptions{QuantizeOnLoad::nf4, compute, bench::thread_count()});
  Generator generator(model, {});
  Sampling sampling;
  sampling.max_tokens = 128;
  // Wall-clock time, unlike bench::best_time: the work is done on the generator's thread.
  double seconds = 1e30;
  for (int run = 0; run < 6; ++run) {
    const auto start = std::chrono::steady_clock::now();
    std::latch done(sequences);
    for (int i = 0; i < sequences; ++i)
      generator.submit({std::vector<std::uint32_t>(64, static_cast<std::uint32_t>(i + 3)), nullptr, sampling},
                       {[](const GeneratedToken&) {}, [&done](const Error*) { done.count_down(); }});
    done.wait();
    seconds = std::min(seconds, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  const double tokens = 128.0 * sequences;
  print(what, seconds / 128, tokens / 128, 2.0 * static_cast<double>(model->info().parameter_count) * sequences, bench::floors(model->exec().pool).flops);
}

}  // namespace

int main(int count, char** words) {
  const std::string only = count > 1 ? words[1] : "";
  const RandomModel random;
  const std::vector<Batch> base{Batch(8, 256)};
  const std::vector<Batch> tutorial{Batch(1, 180), Batch(1, 220)};
  for (const Compute compute : {Compute::bf16, Compute::f32}) {
    std::printf("%s\n", compute == Compute::bf16 ? "bf16" : "f32");
    if (only.empty() || only == "full") train(random, "all weights, 8 rows of 256", false, base, compute);
    if (only.empty() || only == "lora") train(random, "adapter r 16 on NF4, 2 micro-batches of 1 row of 200", true, tutorial, compute);
    if (only.empty() || only == "decode") decode(random, "generation, 1 sequence", 1, compute);
    if (only.empty() || only == "decode") decode(random, "generation, 8 sequences", 8, compute);
  }
}
