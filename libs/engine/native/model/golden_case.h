// golden_case.h: test support: a golden model's folder with what the reference implementation computed for it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/test.h"
#include "formats/safetensors.h"
#include "model/model.h"

namespace engine::test {

struct GoldenCase {
  std::string name;
  std::filesystem::path dir;
  Json reference;
  std::vector<std::vector<std::uint32_t>> sequences;
};

inline std::vector<std::uint32_t> token_list(const Json& values) { return values.get<std::vector<std::uint32_t>>(); }

// The families of libs/engine/golden, made by make_golden.py there.
inline std::vector<GoldenCase> family_goldens() {
  std::vector<GoldenCase> cases;
  const std::filesystem::path root = std::filesystem::path(ENGINE_REPOSITORY_DIR) / "libs/engine/golden";
  for (const char* name : {"llama3", "llama_bias_linear", "llama_dynamic", "mistral", "qwen2_window", "qwen2_yarn", "qwen3", "gemma", "gemma2", "gemma3"}) {
    GoldenCase c{name, root / name, read_json(root / name / "reference.json"), {}};
    for (const Json& sequence : c.reference.at("sequences")) c.sequences.push_back(token_list(sequence));
    cases.push_back(std::move(c));
  }
  return cases;
}

// The goldens beside the repository, which also have adapters and an NF4 base. Skips the test when they are absent.
inline std::vector<GoldenCase> shared_goldens() {
  std::vector<GoldenCase> cases;
  const std::filesystem::path root = shared_dir() / "golden";
  if (!std::filesystem::exists(root / "qwen2_tied")) SKIP("no golden/ in the shared inputs");
  for (const char* name : {"qwen2_tied", "qwen2_untied", "qwen3"}) {
    GoldenCase c{name, root / name, read_json(root / name / "reference.json"), {}};
    for (const Json& sequence : c.reference.at("seqs")) c.sequences.push_back(token_list(sequence));
    cases.push_back(std::move(c));
  }
  return cases;
}

inline std::vector<float> read_tensor(const SafetensorsFile& file, const std::string& name) {
  const TensorView& tensor = file.at(name);
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  to_f32(tensor.dtype, tensor.data, tensor.elements(), values.data());
  return values;
}

// max |a − b| / max |b|
inline double relative_to_scale(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double worst = 0, scale = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double{a[i]} - double{b[i]});
    worst = difference <= worst ? worst : difference;  // a NaN becomes the worst and stays
    scale = std::max(scale, std::abs(double{b[i]}));
  }
  return worst / scale;
}

// ||a − b|| / ||b||
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
    norm += double{b[i]} * double{b[i]};
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

}  // namespace engine::test
