// Sequences that become vectors, judged by transformers: golden/embeddings, made by make_embedding_golden.py.
#include <algorithm>
#include <string>

#include "core/test.h"
#include "formats/safetensors.h"
#include "infer/generation_case.h"
#include "infer/host_kv_memory.h"

using namespace engine;
using namespace engine::test;

namespace {

std::filesystem::path embeddings() { return std::filesystem::path(ENGINE_REPOSITORY_DIR) / "libs/engine/golden/embeddings"; }

std::shared_ptr<Model> load(const std::filesystem::path& dir, Compute compute) { return std::make_shared<Model>(dir, LoadOptions{QuantizeOnLoad::none, compute, 2}); }

// The vector that a reference's states [T, hidden] pool to.
std::vector<float> pooled(const SafetensorsFile& file, const std::string& name, std::int64_t hidden, Pooling pooling) {
  const std::vector<float> states = read_tensor(file, name);
  HiddenPool pool(pooling);
  for (std::size_t at = 0; at < states.size(); at += static_cast<std::size_t>(hidden)) pool.add(std::span(states).subspan(at, static_cast<std::size_t>(hidden)));
  return pool.vector();
}

// Over both poolings and all sequences that the model's context takes: max |ours − theirs| / max |theirs|.
double worst_error(Generator& generator, const ModelSpec& spec, const SafetensorsFile& file, const std::string& prefix, const std::vector<std::vector<std::uint32_t>>& sequences,
                   std::shared_ptr<const LoraAdapter> adapter) {
  double worst = 0;
  for (const Pooling pooling : {Pooling::mean, Pooling::last})
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      if (static_cast<std::int64_t>(sequences[i].size()) > spec.context) continue;
      const Pooled outcome = pool(generator, sequences[i], pooling, adapter).get();
      CHECK(!outcome.error);
      worst = std::max(worst, relative_to_scale(outcome.vector, pooled(file, prefix + std::to_string(i), spec.hidden, pooling)));
    }
  CHECK_EQ(generator.load().used_blocks, 0);
  return worst;
}

}  // namespace

TEST("the vectors of every family, alone and with an adapter, equal the reference implementation's to 2e-5 of their scale") {
  for (const GoldenCase& c : family_goldens()) {
    const auto model = load(c.dir, Compute::f32);
    const SafetensorsFile file(embeddings() / (c.name + ".safetensors"));
    Generator generator(model, {.prefill_tokens = 9});
    const auto adapter = std::make_shared<LoraAdapter>(LoraAdapter::read(model->spec(), c.dir.parent_path() / "adapters" / c.name / "adapter"));
    for (const bool adapted : {false, true}) {
      const double error = worst_error(generator, model->spec(), file, adapted ? "adapted_" : "hidden_", c.sequences, adapted ? adapter : nullptr);
      if (!(error <= 2e-5)) report_failure(__FILE__, __LINE__, text(c.name, adapted ? " with its adapter" : "", " differs by ", error));
    }
  }
}

TEST("mean vectors in bf16 stay within twice the error of a plain bf16 model") {
  for (const GoldenCase& c : family_goldens()) {
    const auto model = load(c.dir, Compute::bf16);
    const SafetensorsFile file(embeddings() / (c.name + ".safetensors"));
    Generator generator(model, {});
    std::vector<float> ours, exact;
    for (std::size_t i = 0; i < c.sequences.size(); ++i) {
      if (static_cast<std::int64_t>(c.sequences[i].size()) > model->spec().context) continue;
      const std::vector<float> vector = pool(generator, c.sequences[i], Pooling::mean).get().vector, expected = pooled(file, text("hidden_", i), model->spec().hidden, Pooling::mean);
      ours.insert(ours.end(), vector.begin(), vector.end());
      exact.insert(exact.end(), expected.begin(), expected.end());
    }
    const double error = relative_error(ours, exact), plain = read_json(embeddings() / (c.name + ".json")).at("bf16_mean_error").get<double>();
    if (!(error <= 2 * plain)) report_failure(__FILE__, __LINE__, text(c.name, ": bf16 error is ", error, ", a plain bf16 model's ", plain));
  }
}

TEST("the vectors of a model that was really trained equal the reference implementation's to 2e-5 of their scale") {
  const std::filesystem::path dir = shared_dir() / "data/weights/stories260K/hf";
  if (!std::filesystem::exists(dir)) SKIP("no weights/stories260K in the shared inputs");
  const auto model = load(dir, Compute::f32);
  Generator generator(model, {});
  std::vector<std::vector<std::uint32_t>> sequences;
  const Json judged = read_json(embeddings() / "stories260K.json");
  for (const Json& sequence : judged.at("sequences")) sequences.push_back(token_list(sequence));
  CHECK_EQ(sequences.size(), 3u);
  const double error = worst_error(generator, model->spec(), SafetensorsFile(embeddings() / "stories260K.safetensors"), "hidden_", sequences, nullptr);
  if (!(error <= 2e-5)) report_failure(__FILE__, __LINE__, text("they differ by ", error));
}

TEST("a sequence pooled in chunks, preempted and beside generation and other adapters is the same vector bit for bit, and leaves nothing in the cache") {
  const GoldenCase c = family("qwen3");
  const auto model = load(c.dir, Compute::bf16);
  const std::vector<std::shared_ptr<const LoraAdapter>> adapters{nullptr, random_adapter(model->spec(), 4, 1), random_adapter(model->spec(), 8, 2)};
  std::vector<std::vector<float>> alone;
  const auto each = [&](const auto& some) {
    for (std::size_t i = 0; i < 9; ++i) some(c.sequences[i % 3], i % 2 == 0 ? Pooling::mean : Pooling::last, adapters[i / 3]);
  };
  {
    Generator generator(model, {});
    each([&](const auto& tokens, Pooling pooling, const auto& adapter) { alone.push_back(pool(generator, tokens, pooling, adapter).get().vector); });
  }
  const std::int64_t block = HostKvMemory::block_bytes(model->spec(), Compute::bf16);
  for (const GeneratorOptions& options : {GeneratorOptions{}, GeneratorOptions{.max_running = 3, .prefill_tokens = 5}, GeneratorOptions{.prefill_tokens = 16, .kv_bytes = 3 * block}}) {
    Generator generator(model, options);
    Running other = start(generator, c.sequences[2], greedy(30), adapters[1]);
    std::vector<RunningPool> running;
    each([&](const auto& tokens, Pooling pooling, const auto& adapter) { running.push_back(pool(generator, tokens, pooling, adapter, PrefixScope{1})); });
    for (std::size_t i = 0; i < running.size(); ++i) CHECK(running[i].get().vector == alone[i]);
    CHECK_EQ(other.get().tokens.size(), 30u);
    CHECK_EQ(generator.load().used_blocks, 0);
    CHECK_EQ(generator.load().cached_tokens, 0);
  }
}

TEST("a sequence is pooled up to the whole context, and a request for too much, or for two things, is refused") {
  const GoldenCase c = family("llama3");
  const auto model = load(c.dir, Compute::f32);
  Generator generator(model, {});
  const auto context = static_cast<std::size_t>(model->spec().context);
  CHECK_EQ(pool(generator, std::vector<std::uint32_t>(context, 5), Pooling::mean).get().vector.size(), static_cast<std::size_t>(model->spec().hidden));
  CHECK_THROWS(invalid, pool(generator, std::vector<std::uint32_t>(context + 1, 5), Pooling::mean));
  CHECK_THROWS(invalid, pool(generator, {}, Pooling::last));
  GenerateRequest both{.tokens = {5, 6, 7}, .adapter = nullptr, .sampling = {}};
  both.scored = 1;
  both.pooling = Pooling::mean;
  CHECK_THROWS(invalid, generator.submit(std::move(both), {}));
}
