// The device's gradients with every option of adapters, on the goldens whose CPU results PEFT judged (train/adapter_golden_test.cpp).
#include <array>
#include <cmath>

#include "cuda/train/trainer_case.h"

using namespace engine;
using namespace engine::cuda;
using namespace engine::cuda::test;
using engine::test::relative_error;
using engine::test::report_failure;

namespace {

struct Option {
  const char* name;
  double dropout;
};
constexpr std::array kOptions{Option{"rslora", 0}, Option{"layers", 0}, Option{"patterns", 0.2}};

struct OptionCase {
  GoldenCase base;
  TrainerOptions options;
};

OptionCase option_case(const std::string& name, double dropout) {
  const std::filesystem::path dir = std::filesystem::path(ENGINE_REPOSITORY_DIR) / "libs/engine/golden/adapters" / name;
  OptionCase c{family(read_json(dir / "reference.json").at("family").get<std::string>()), options_of()};
  c.options.lora = PeftAdapter(dir / "adapter").config();
  c.options.lora->dropout = dropout;
  c.options.initial_adapter_dir = dir / "adapter";
  return c;
}

struct Gradient {
  double loss;
  std::vector<float> values;
};

Gradient gradient(AnyTrainer& trainer, const std::vector<PackedRows>& micros) {
  const double loss = trainer.train_step(views(micros)).loss;
  return {loss, gradients_of(trainer)};
}

// The device's gradients against exact ones, where the CPU's bf16 mode says what rounding costs.
void check_gradients(const std::string& name, const OptionCase& c, QuantizeOnLoad quantize) {
  const auto exact_model = load(c.base, Compute::f32, quantize), model = load(c.base, Compute::bf16, quantize);
  const std::vector<PackedRows> micros = two_micros(c.base);
  Trainer exact(exact_model, c.options), rounded(model, c.options);
  const auto device = device_trainer(model, c.options);
  const Gradient e = gradient(exact, micros), r = gradient(rounded, micros), d = gradient(*device, micros);
  const double error = relative_error(d.values, e.values), cpu_error = relative_error(r.values, e.values);
  if (!(std::abs(d.loss - e.loss) <= 4e-3 * e.loss)) report_failure(__FILE__, __LINE__, text(name, ": the loss is ", d.loss, ", exactly ", e.loss));
  if (!(error <= 2 * cpu_error)) report_failure(__FILE__, __LINE__, text(name, ": gradients are off by ", error, ", the CPU's by ", cpu_error));
}

}  // namespace

TEST("gradients with every option of adapters are as close to exact ones as the CPU's bf16 mode is") {
  for (const auto& [name, dropout] : kOptions) check_gradients(name, option_case(name, dropout), QuantizeOnLoad::nf4);
}
