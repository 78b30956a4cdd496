#include "cuda/train/memory_plan.h"

#include "core/error.h"
#include "core/test.h"
#include "cuda/train/trainer_case.h"
#include "train/setup.h"

using namespace engine;
using namespace engine::cuda;

namespace {

// Qwen2.5's shapes, as config.json gives them.
ModelSpec qwen(std::int64_t hidden, std::int64_t ffn, std::int64_t heads, std::int64_t kv_heads, std::int64_t vocab) {
  return read_spec(Json{{"model_type", "qwen2"},
                        {"architectures", {"Qwen2ForCausalLM"}},
                        {"hidden_size", hidden},
                        {"intermediate_size", ffn},
                        {"num_hidden_layers", 28},
                        {"num_attention_heads", heads},
                        {"num_key_value_heads", kv_heads},
                        {"vocab_size", vocab},
                        {"max_position_embeddings", 131072},
                        {"rms_norm_eps", 1e-6},
                        {"rope_theta", 10000.0},
                        {"hidden_act", "silu"},
                        {"tie_word_embeddings", false}});
}

// A run of rank 16 on all seven projections of a doubly quantized base.
struct Run {
  ModelSpec spec;
  LoraAdapter adapter;
  Geometry geometry = make_geometry(spec, adapter);
  BaseFormat format = nf4_format(spec);
  std::vector<OptimizerRun> runs = optimizer_runs(eight_bit(), trainable_tensors(adapter));

  explicit Run(ModelSpec model, const LoraConfig& lora = {16, 16, 0, false, known_target_modules(), ""})
      : spec(std::move(model)), adapter(LoraAdapter::layout_of(spec, lora)) {}
  RunShape shape() const { return {spec, geometry, format, runs, adapter}; }

  static OptimizerOptions eight_bit() {
    OptimizerOptions options;
    options.kind = OptimizerKind::adamw_8bit;
    return options;
  }
};

Run run_7b() { return Run(qwen(3584, 18944, 28, 4, 152064)); }
Run run_1_5b() { return Run(qwen(1536, 8960, 12, 2, 151936)); }

std::int64_t least_bytes(const RunShape& shape, std::int64_t tokens) {
  std::int64_t least = INT64_MAX;
  for (const MemoryChoice& choice : memory_choices(shape, tokens)) least = std::min(least, measure(shape, choice, tokens).device());
  return least;
}

// Whether a plan is slower than another in any respect that memory buys.
bool slower(const MemoryChoice& a, const MemoryChoice& b) {
  return a.kept < b.kept || (a.kept == b.kept && a.partly < b.partly) || a.offloaded > b.offloaded || a.decoded < b.decoded ||
         (!a.scratch_for_each_group && b.scratch_for_each_group) || (!a.embedding_on_device && b.embedding_on_device) || a.loss_rows < b.loss_rows;
}

}  // namespace

TEST("a 7B run of one row of 1024 tokens fits 6.0 GB, a 1.5B run 2.0 GB") {
  CHECK(least_bytes(run_7b().shape(), 1024) <= 6'000'000'000);
  CHECK(least_bytes(run_1_5b().shape(), 1024) <= 2'000'000'000);
}

TEST("the parts that every run has are the bytes computed by hand") {
  const Run run = run_7b();
  CHECK_EQ(run.adapter.size(), 40'370'176);
  const MemoryUse use = measure(run.shape(), memory_choices(run.shape(), 1024).front(), 1024);
  // NF4 blocks 3.366 GB, head 1.090 GB, adapter and gradients 0.161 GB each, 8-bit state 0.082 GB
  CHECK_CLOSE(static_cast<double>(use.fixed), 3.366e9 + 1.090e9 + 2 * 0.1615e9 + 0.082e9, 0.01e9);
}

TEST("more memory never makes a plan slower, and no plan takes more than its budget") {
  for (const Run& run : {run_7b(), run_1_5b()})
    for (const std::int64_t tokens : {256, 1024, 8192}) {
      const RunShape shape = run.shape();
      const std::int64_t least = least_bytes(shape, tokens);
      MemoryPlan before = plan_memory(shape, tokens, least);
      for (std::int64_t budget = least; budget < std::int64_t{80} << 30; budget += std::int64_t{777} << 20) {
        const MemoryPlan plan = plan_memory(shape, tokens, budget);
        CHECK(plan.use.device() <= budget);
        CHECK(!slower(plan.choice, before.choice));
        before = plan;
      }
    }
}

TEST("one byte less than the least is refused with what is missing") {
  const Run run = run_7b();
  const RunShape shape = run.shape();
  const std::int64_t least = least_bytes(shape, 1024);
  CHECK(plan_memory(shape, 1024, least).use.device() == least);
  CHECK_THROWS(oom, plan_memory(shape, 1024, least - 1));
  try {
    plan_memory(shape, 1024, std::int64_t{4} << 30);
  } catch (const Error& error) {
    CHECK(error.message().find("MiB more than the budget of 4096.0 MiB") != std::string::npos);
  }
}

TEST("layers below the first that is adapted keep nothing, and are not counted among those that do") {
  LoraConfig lora{16, 16, 0, false, known_target_modules(), ""};
  lora.layers = {21, 22, 23, 24, 25, 26, 27};
  const Run all = run_7b(), some(qwen(3584, 18944, 28, 4, 152064), lora);
  CHECK_EQ(plan_memory(some.shape(), 8192, std::int64_t{80} << 30).choice.kept, 7);
  const auto inputs = [](const Run& run) {  // of all layers but the last, where every layer keeps its input alone
    const std::vector<MemoryChoice> choices = memory_choices(run.shape(), 8192);
    const auto nothing_offloaded = std::ranges::find(choices, 0, &MemoryChoice::offloaded);
    return measure(run.shape(), *nothing_offloaded, 8192).step;
  };
  CHECK(inputs(all) - inputs(some) >= 19 * std::int64_t{8192} * 3584 * 2);  // two of the 21 remain
  CHECK_EQ(plan_memory(some.shape(), 8192, std::int64_t{80} << 30).describe(some.shape()).recomputed_layers, 0);
}

TEST("8 rows of 1024 tokens of a 7B base keep every activation within 80 GiB, and train within 7 GiB") {
  const Run run = run_7b();
  const MemoryPlan roomy = plan_memory(run.shape(), 8192, std::int64_t{80} << 30), tight = plan_memory(run.shape(), 8192, std::int64_t{7} << 30);
  CHECK_EQ(roomy.choice.kept, 28);
  CHECK_EQ(roomy.choice.decoded, 28);
  CHECK(tight.choice.offloaded > 0 || tight.choice.kept == 0);
  const TrainingPlan plan = tight.describe(run.shape());
  CHECK(plan.table.find("base weights and head") != std::string::npos);
  CHECK_EQ(plan.kept_layers + plan.partly_kept_layers + plan.recomputed_layers + plan.offloaded_layers, 28);
}
