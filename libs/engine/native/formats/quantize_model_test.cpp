#include "formats/quantize_model.h"

#include <cmath>
#include <cstring>
#include <fstream>

#include "core/code_tables.h"
#include "core/staged_output.h"
#include "core/test.h"
#include "formats/bnb_nf4.h"
#include "formats/merge_adapter.h"
#include "formats/peft_adapter.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

struct Fixture {
  ThreadPool pool{2};
  Exec ex = make_exec(pool, Compute::f32);
  test::TempDir temp;
};

int entries(const fs::path& dir) { return static_cast<int>(std::distance(fs::directory_iterator(dir), {})); }
bool same_bytes(const TensorView& a, const void* b, std::int64_t bytes) {
  return a.bytes == bytes && std::memcmp(a.data, b, static_cast<std::size_t>(bytes)) == 0;
}
bool same(const TensorView& a, const TensorView& b) { return a.dtype == b.dtype && same_bytes(a, b.data, b.bytes); }

// max |W + scale · B·A − merged|, all f32.
double worst_difference(const TensorView& base, const AdapterPair& pair, double scale, const TensorView& merged) {
  const std::int64_t rows = base.shape[0], cols = base.shape[1], rank = pair.a->shape[0];
  const auto *w = reinterpret_cast<const float*>(base.data), *m = reinterpret_cast<const float*>(merged.data);
  const auto *a = reinterpret_cast<const float*>(pair.a->data), *b = reinterpret_cast<const float*>(pair.b->data);
  double worst = 0;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c) {
      double sum = 0;
      for (std::int64_t k = 0; k < rank; ++k) sum += static_cast<double>(b[r * rank + k]) * a[k * cols + c];
      worst = std::max(worst, std::abs(w[r * cols + c] + scale * sum - m[r * cols + c]));
    }
  return worst;
}

// A model folder of one quantizable matrix and one embedding, all values from `value(i)`.
template <class Value>
void write_small_model(const fs::path& dir, std::int64_t rows, std::int64_t cols, Value value) {
  fs::create_directories(dir);
  std::vector<float> w(static_cast<std::size_t>(rows * cols)), e(8, 0.5f);
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = value(static_cast<std::int64_t>(i));
  write_safetensors(dir / "model.safetensors",
                    {{{"model.layers.0.mlp.up_proj.weight", Dtype::f32, {rows, cols}}, w.data()}, {{"model.embed_tokens.weight", Dtype::f32, {4, 2}}, e.data()}},
                    {{"format", "pt"}});
  write_file(dir / "config.json", R"({"model_type":"llama","torch_dtype":"float32"})");
  write_file(dir / "tokenizer.json", "{}");
  write_file(dir / "unrelated.txt", "x");
}

}  // namespace

TEST("golden matrices quantize byte for byte as bitsandbytes does, singly and doubly") {
  Fixture f;
  for (const char* name : {"qwen2_untied", "qwen2_tied", "qwen3"}) {
    const fs::path golden_dir = test::shared_dir() / "golden" / name;
    const SafetensorsFile golden(golden_dir / "nf4_layer0.safetensors");
    for (const bool twice : {false, true}) {
      const fs::path out_dir = f.temp / text(name, twice);
      quantize_model(f.ex, golden_dir, out_dir, {.double_quant = twice});
      const HfFolder out(out_dir);
      int compared = 0;
      for (const TensorView& packed : golden.tensors()) {
        const std::string suffix = twice ? ".dq.packed" : ".sq.packed";
        if (!packed.name.ends_with(suffix)) continue;
        const std::string weight = packed.name.substr(0, packed.name.size() - suffix.size());
        const std::string prefix = weight + (twice ? ".dq." : ".sq.");
        CHECK(same_bytes(out.at(weight), packed.data, packed.bytes));
        CHECK(same(out.at(weight + ".absmax"), golden.at(prefix + "absmax")));
        const auto stored = find_nf4(out, weight);
        CHECK(stored.has_value());
        if (twice) {
          CHECK(same(out.at(weight + ".nested_absmax"), golden.at(prefix + "nested_absmax")));
          CHECK(same(out.at(weight + ".nested_quant_map"), golden.at(prefix + "nested_code")));
          float offset = 0;
          std::memcpy(&offset, golden.at(prefix + "offset").data, 4);
          CHECK_EQ(stored->nested.offset, offset);
        }
        ++compared;
      }
      CHECK(compared >= 2);
    }
  }
}

TEST("a quantized folder has the layout of bitsandbytes and keeps everything else as it was") {
  Fixture f;
  const fs::path golden_dir = test::shared_dir() / "golden/qwen2_untied";
  std::int64_t last = 0, total = 0;
  const QuantizedModel result =
      quantize_model(f.ex, golden_dir, f.temp / "q", {.progress = [&](std::int64_t done, std::int64_t all) { CHECK(done > last); last = done; total = all; }});
  CHECK_EQ(last, total);
  const HfFolder in(golden_dir), out(f.temp / "q");
  CHECK_EQ(result.quantized, 14);
  CHECK_EQ(result.tensors, static_cast<std::int64_t>(out.tensors().size()));
  CHECK_EQ(result.weight_bytes, out.weight_bytes());
  for (const TensorView* tensor : in.tensors()) {
    if (!is_block_linear(tensor->name)) {
      CHECK(same(*tensor, out.at(tensor->name)));
      continue;
    }
    const TensorView& packed = out.at(tensor->name);
    CHECK(packed.dtype == Dtype::u8 && packed.shape == std::vector<std::int64_t>({tensor->elements() / 2, 1}));
    const TensorView& state = out.at(quant_state_name(tensor->name));
    const std::string json(reinterpret_cast<const char*>(state.data), static_cast<std::size_t>(state.bytes));
    CHECK(json.starts_with(text(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [)", tensor->shape[0], ", ", tensor->shape[1],
                                R"(], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.)")));
    CHECK(json.ends_with("}"));
  }
  const auto quantization = read_quantization_config(out.config());
  CHECK(quantization && quantization->double_quant);
}

TEST("blocks of 64 run over the flattened matrix when rows are not multiples of 64") {
  Fixture f;
  write_small_model(f.temp / "m", 3, 86, [](std::int64_t i) { return std::sin(static_cast<float>(i)); });
  quantize_model(f.ex, f.temp / "m", f.temp / "q", {.double_quant = false});
  const HfFolder out(f.temp / "q");
  const auto stored = find_nf4(out, "model.layers.0.mlp.up_proj.weight");
  CHECK_EQ(stored->blocks(), (3 * 86 + 63) / 64);
  CHECK_EQ(static_cast<std::int64_t>(stored->absmax.size()), stored->blocks());
}

TEST("shards hold a matrix with its scales and the index names exactly what they hold") {
  Fixture f;
  quantize_model(f.ex, test::shared_dir() / "golden/qwen2_untied", f.temp / "q", {.max_shard_bytes = 60'000});
  const HfFolder sharded(f.temp / "q");
  CHECK(sharded.shards().size() > 2);
  quantize_model(f.ex, test::shared_dir() / "golden/qwen2_untied", f.temp / "one", {});
  const HfFolder whole(f.temp / "one");
  CHECK_EQ(sharded.tensors().size(), whole.tensors().size());
  for (const TensorView* tensor : whole.tensors()) CHECK(same(*tensor, sharded.at(tensor->name)));
  for (const SafetensorsFile& shard : sharded.shards())
    for (const TensorView& tensor : shard.tensors())
      if (tensor.name.ends_with(".absmax")) CHECK(shard.find(tensor.name.substr(0, tensor.name.size() - 7)) != nullptr);
}

TEST("only the model's own files travel along") {
  Fixture f;
  write_small_model(f.temp / "m", 2, 64, [](std::int64_t i) { return static_cast<float>(i); });
  quantize_model(f.ex, f.temp / "m", f.temp / "q", {});
  CHECK(fs::exists(f.temp / "q/tokenizer.json"));
  CHECK(!fs::exists(f.temp / "q/unrelated.txt"));
}

TEST("a failed or cancelled quantization leaves nothing behind") {
  Fixture f;
  write_small_model(f.temp / "nan", 2, 64, [](std::int64_t i) { return i == 100 ? NAN : 1.0f; });
  CHECK_THROWS(corrupt, quantize_model(f.ex, f.temp / "nan", f.temp / "out", {}));
  write_small_model(f.temp / "good", 2, 64, [](std::int64_t i) { return static_cast<float>(i); });
  CancelFlag cancel;
  QuantizeOptions options{.cancel = &cancel};
  options.progress = [&](std::int64_t, std::int64_t) { cancel.requested = true; };
  CHECK_THROWS(cancelled, quantize_model(f.ex, f.temp / "good", f.temp / "out", options));
  CHECK_EQ(entries(f.temp.path()), 2);
  quantize_model(f.ex, f.temp / "good", f.temp / "out", {});
  CHECK_THROWS(invalid, quantize_model(f.ex, f.temp / "good", f.temp / "out", {}));
  CHECK_THROWS(unsupported, quantize_model(f.ex, f.temp / "out", f.temp / "again", {}));
  CHECK_EQ(entries(f.temp.path()), 3);
}

TEST("the quantization_config of other methods is refused by name") {
  const auto read = [](const char* json) { return read_quantization_config(parse_json(json, "config.json")); };
  CHECK(!read("{}"));
  CHECK(!read(R"({"quantization_config":null})"));
  CHECK(read(R"({"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"nf4","bnb_4bit_use_double_quant":true}})")->double_quant);
  CHECK_THROWS(unsupported, read(R"({"quantization_config":{"quant_method":"gptq"}})"));
  CHECK_THROWS(unsupported, read(R"({"quantization_config":{"quant_method":"bitsandbytes","load_in_8bit":true}})"));
  CHECK_THROWS(unsupported, read(R"({"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true}})"));
  CHECK_THROWS(unsupported, read(R"({"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"fp4"}})"));
  CHECK_THROWS(corrupt, read(R"({"quantization_config":{}})"));
  CHECK_THROWS(corrupt, read(R"({"quantization_config":[]})"));
}

TEST("merging into a stored base adds scale times B A to the adapted matrices only") {
  Fixture f;
  for (const char* name : {"qwen2_untied", "qwen3"}) {
    const fs::path golden_dir = test::shared_dir() / "golden" / name;
    const fs::path out_dir = f.temp / name;
    const MergedModel result = merge_adapter(f.ex, golden_dir, golden_dir / "adapter_after5", out_dir, {});
    CHECK_EQ(result.base, std::string("stored"));
    const HfFolder base(golden_dir), merged(out_dir);
    CHECK_EQ(result.weight_bytes, merged.weight_bytes());
    CHECK_EQ(base.tensors().size(), merged.tensors().size());
    const PeftAdapter adapter(golden_dir / "adapter_after5");
    int adapted = 0;
    for (const TensorView* tensor : base.tensors()) {
      const AdapterPair* pair = nullptr;
      for (const AdapterPair& candidate : adapter.pairs())
        if (candidate.module + ".weight" == tensor->name) pair = &candidate;
      if (pair == nullptr) {
        CHECK(same(*tensor, merged.at(tensor->name)));
        continue;
      }
      ++adapted;
      CHECK(worst_difference(*tensor, *pair, adapter.config().scale(), merged.at(tensor->name)) < 1e-6);
    }
    CHECK_EQ(adapted, static_cast<int>(adapter.pairs().size()));
  }
}

TEST("merging into an NF4 base starts from the dequantized weights and gives a plain model") {
  Fixture f;
  const fs::path golden_dir = test::shared_dir() / "golden/qwen2_untied";
  quantize_model(f.ex, golden_dir, f.temp / "q", {});
  CHECK_EQ(merge_adapter(f.ex, f.temp / "q", golden_dir / "adapter_init", f.temp / "m", {}).base, std::string("nf4_dequantized"));
  const HfFolder merged(f.temp / "m"), base(golden_dir);
  CHECK(!merged.config().contains("quantization_config"));
  CHECK_EQ(merged.tensors().size(), base.tensors().size());
  CHECK_EQ(merged.shards()[0].metadata().at("merged_into"), std::string("nf4_dequantized"));
  const SafetensorsFile golden(golden_dir / "nf4_layer0.safetensors");
  const PeftAdapter adapter(golden_dir / "adapter_init");
  int compared = 0;
  for (const TensorView& dequantized : golden.tensors()) {
    if (!dequantized.name.ends_with(".dq.dequant")) continue;
    const std::string weight = dequantized.name.substr(0, dequantized.name.size() - 11);
    for (const AdapterPair& pair : adapter.pairs()) {
      if (pair.module + ".weight" != weight) continue;
      CHECK(worst_difference(dequantized, pair, adapter.config().scale(), merged.at(weight)) < 1e-6);
      ++compared;
    }
  }
  CHECK(compared >= 2);
}

TEST("an adapter of another base is refused and nothing is left behind") {
  Fixture f;
  const fs::path golden = test::shared_dir() / "golden";
  CHECK_THROWS(corrupt, merge_adapter(f.ex, golden / "qwen2_untied", golden / "qwen3/adapter_init", f.temp / "m", {}));
  CancelFlag cancel;
  cancel.requested = true;
  CHECK_THROWS(cancelled, merge_adapter(f.ex, golden / "qwen2_untied", golden / "qwen2_untied/adapter_init", f.temp / "m", {.cancel = &cancel}));
  CHECK_THROWS(io, merge_adapter(f.ex, golden / "qwen2_untied", f.temp / "absent", f.temp / "m", {}));
  CHECK_EQ(entries(f.temp.path()), 0);
}

}  // namespace engine
