// Checkpoints of bitsandbytes in which some modules stay 16-bit, in both directions.
#include <cstring>

#include "core/test.h"
#include "formats/bnb_nf4.h"
#include "formats/quantize_model.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

const fs::path kGolden = fs::path(ENGINE_REPOSITORY_DIR) / "libs/engine/golden";

struct Fixture {
  ThreadPool pool{2};
  Exec ex = make_exec(pool, Compute::f32);
  test::TempDir temp;
};

}  // namespace

TEST("a mixed checkpoint that bitsandbytes and transformers saved reads as NF4 where it is and as bf16 elsewhere") {
  for (const char* name : {"nested", "single"}) {
    const HfFolder folder(kGolden / "bnb_mixed" / name);
    const bool nested = std::string_view(name) == "nested";
    const auto config = read_quantization_config(folder.config());
    CHECK(config && config->double_quant == nested);
    for (const char* kept : {"model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"}) {
      CHECK(!find_nf4(folder, kept).has_value());
      CHECK(folder.at(kept).dtype == Dtype::bf16);
    }
    const auto stored = find_nf4(folder, "model.layers.1.mlp.down_proj.weight");
    CHECK(stored && stored->rows == 32 && stored->cols == 48 && stored->double_quant == nested);
  }
}

TEST("skipping the same modules writes bitsandbytes' checkpoint byte for byte") {
  Fixture f;
  for (const char* name : {"nested", "single"}) {
    const bool nested = std::string_view(name) == "nested";
    quantize_model(f.ex, kGolden / "qwen3", f.temp / name,
                   {.double_quant = nested, .skip_modules = {"lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"}});
    const HfFolder wanted(kGolden / "bnb_mixed" / name), made(f.temp / name);
    CHECK_EQ(made.tensors().size(), wanted.tensors().size());
    for (const TensorView* tensor : wanted.tensors()) {
      const TensorView& ours = made.at(tensor->name);
      if (ours.dtype != tensor->dtype || ours.shape != tensor->shape || std::memcmp(ours.data, tensor->data, static_cast<std::size_t>(tensor->bytes)) != 0)
        test::report_failure(__FILE__, __LINE__, text(name, ": ", tensor->name, " differs"));
    }
    CHECK(made.config().at("quantization_config") == wanted.config().at("quantization_config"));
  }
}

TEST("modules to skip may be named by their beginning or their last part, and are listed in full") {
  Fixture f;
  quantize_model(f.ex, kGolden / "qwen3", f.temp / "m", {.skip_modules = {"model.layers.1", "down_proj"}});
  const HfFolder made(f.temp / "m");
  for (const TensorView* tensor : made.tensors()) {
    const bool skipped = tensor->name.starts_with("model.layers.1.") || tensor->name.find("down_proj") != std::string::npos;
    if (is_block_linear(tensor->name)) CHECK_EQ(tensor->dtype == Dtype::bf16, skipped);
  }
  const Json& list = made.config().at("quantization_config").at("llm_int8_skip_modules");
  CHECK_EQ(list.size(), 1u + 7u + 1u);  // lm_head, all of layer 1, down_proj of layer 0
  CHECK_EQ(list[0].get<std::string>(), "lm_head");
}

TEST("an entry of skip_modules that names nothing is refused, and nothing is left behind") {
  Fixture f;
  for (const char* entry : {"", "model.layers.2", "own_proj", "model.layers.1.", "embed_tokens"})
    CHECK_THROWS(invalid, quantize_model(f.ex, kGolden / "qwen3", f.temp / "x", {.skip_modules = {entry}}));
  // Every linear: none would be left to quantize.
  CHECK_THROWS(unsupported, quantize_model(f.ex, kGolden / "qwen3", f.temp / "x", {.skip_modules = {"model.layers"}}));
  CHECK_EQ(std::distance(fs::directory_iterator(f.temp.path()), {}), 0);
}

}  // namespace engine
