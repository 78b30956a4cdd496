#include "model/forward.h"

#include <limits>

#include "core/test.h"
#include "model/golden_case.h"
#include "model/model.h"

using namespace engine;
using namespace engine::test;

namespace {

constexpr LoadOptions kExact{.compute = Compute::f32, .threads = 2};
constexpr LoadOptions kHalf{.compute = Compute::bf16, .threads = 2};

}  // namespace

TEST("logits of every family equal the reference implementation's to 2e-5 of their scale") {
  for (const GoldenCase& c : family_goldens()) {
    Model model(c.dir, kExact);
    const SafetensorsFile reference(c.dir / "reference.safetensors");
    for (std::size_t i = 0; i < c.sequences.size(); ++i) {
      const double error = relative_to_scale(model.logits(c.sequences[i], nullptr, nullptr), read_tensor(reference, text("logits_", i)));
      if (!(error <= 2e-5)) report_failure(__FILE__, __LINE__, text(c.name, ": sequence ", i, " differs by ", error));
    }
  }
}

TEST("logits in bf16 stay within twice the error of a plain bf16 model") {
  for (const GoldenCase& c : family_goldens()) {
    Model model(c.dir, kHalf);
    const SafetensorsFile reference(c.dir / "reference.safetensors");
    std::vector<float> ours, exact;
    for (std::size_t i = 0; i < c.sequences.size(); ++i) {
      const std::vector<float> logits = model.logits(c.sequences[i], nullptr, nullptr), expected = read_tensor(reference, text("logits_", i));
      ours.insert(ours.end(), logits.begin(), logits.end());
      exact.insert(exact.end(), expected.begin(), expected.end());
    }
    const double error = relative_error(ours, exact), plain = c.reference.at("bf16_logits_error").get<double>();
    if (!(error <= 2 * plain)) report_failure(__FILE__, __LINE__, text(c.name, ": bf16 error is ", error, ", a plain bf16 model's ", plain));
  }
}

TEST("logits of the shared golden models equal the reference to 2e-5 of their scale: plain, on an NF4 base made on load, and with an adapter") {
  for (const GoldenCase& c : shared_goldens()) {
    const SafetensorsFile reference(c.dir / "reference.safetensors");
    const auto check = [&](const std::string& name, const std::vector<float>& logits) {
      const double error = relative_to_scale(logits, read_tensor(reference, name));
      if (!(error <= 2e-5)) report_failure(__FILE__, __LINE__, text(c.name, ": ", name, " differs by ", error));
    };
    Model plain(c.dir, kExact);
    for (std::size_t i = 0; i < c.sequences.size(); ++i) check(text("logits_", i), plain.logits(c.sequences[i], nullptr, nullptr));
    LoadOptions options = kExact;
    options.quantize = QuantizeOnLoad::nf4;
    Model nf4(c.dir, options);
    CHECK(nf4.resident_bytes() < plain.resident_bytes());
    check("logits_0_nf4dq", nf4.logits(c.sequences[0], nullptr, nullptr));
    const LoraAdapter adapter = LoraAdapter::read(nf4.spec(), c.dir / "adapter_init");
    check("logits_0_nf4dq_lora", nf4.logits(c.sequences[0], &adapter, nullptr));
  }
}

TEST("scores are the log-probabilities that the logits imply") {
  const GoldenCase c = family_goldens().front();
  Model model(c.dir, kExact);
  const std::vector<std::uint32_t>& ids = c.sequences[0];
  const std::vector<float> logits = model.logits(ids, nullptr, nullptr), scores = model.score(ids, nullptr, nullptr);
  CHECK_EQ(scores.size(), ids.size() - 1);
  const auto vocab = static_cast<std::size_t>(model.spec().vocab);
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    double total = 0;
    for (std::size_t j = 0; j < vocab; ++j) total += std::exp(double{logits[i * vocab + j]});
    CHECK_CLOSE(scores[i], logits[i * vocab + ids[i + 1]] - std::log(total), 1e-5);
  }
  CHECK_THROWS(invalid, model.score({ids.data(), 1}, nullptr, nullptr));
  CHECK_THROWS(invalid, model.logits(std::vector<std::uint32_t>{static_cast<std::uint32_t>(vocab)}, nullptr, nullptr));
}
