// The device's gradients with every option of adapters, on the goldens whose CPU results PEFT judged (train/adapter_golden_test.cpp).
#include <array>
#include <cmath>
#include <map>
#include <string_view>

#include "cuda/train/trainer_case.h"

#ifdef ENGINE_CUDA_EMULATED
#include "cuda/runtime/emulation/cuda_api.h"
#endif

using namespace engine;
using namespace engine::cuda;
using namespace engine::cuda::test;
using engine::test::relative_error;
using engine::test::report_failure;

namespace {

struct Option {
  const char* name;
  double dropout = 0;
  QuantizeOnLoad quantize = QuantizeOnLoad::nf4;
};
constexpr std::array kOptions{Option{"rslora"},    Option{"layers"}, Option{"patterns", 0.2}, Option{"whole_untied"},
                              Option{"head_tied"}, Option{"dora"},   Option{"dora", 0.2},     Option{"everything", 0, QuantizeOnLoad::none},
                              Option{"everything", 0.2}};

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

// Gradients of one kind of tensors together: a large module would hide what is wrong with a small one.
struct Gradient {
  double loss;
  std::map<std::string_view, std::vector<float>> kinds;
};

Gradient gradient(AnyTrainer& trainer, const std::vector<PackedRows>& micros) {
  Gradient gradient{trainer.train_step(views(micros)).loss, {}};
  const TempDir dir;
  trainer.save_gradients(dir / "gradients.safetensors");
  const SafetensorsFile file(dir / "gradients.safetensors");
  for (const TensorView& tensor : file.tensors())
    for (const std::string_view kind : {"lora_A", "lora_B", "magnitude", "embed_tokens", "lm_head"}) {
      if (tensor.name.find(kind) == std::string::npos) continue;
      const std::vector<float> part = engine::test::read_tensor(file, tensor.name);
      gradient.kinds[kind].insert(gradient.kinds[kind].end(), part.begin(), part.end());
    }
  return gradient;
}

// The device's gradients against exact ones, where the CPU's bf16 mode says what rounding costs.
void check_gradients(const std::string& name, const OptionCase& c, QuantizeOnLoad quantize) {
  const auto exact_model = load(c.base, Compute::f32, quantize), model = load(c.base, Compute::bf16, quantize);
  const std::vector<PackedRows> micros = two_micros(c.base);
  Trainer exact(exact_model, c.options), rounded(model, c.options);
  const auto device = device_trainer(model, c.options);
  const Gradient e = gradient(exact, micros), r = gradient(rounded, micros), d = gradient(*device, micros);
  if (!(std::abs(d.loss - e.loss) <= 4e-3 * e.loss)) report_failure(__FILE__, __LINE__, text(name, ": the loss is ", d.loss, ", exactly ", e.loss));
  for (const auto& [kind, values] : e.kinds) {
    const double error = relative_error(d.kinds.at(kind), values), cpu_error = relative_error(r.kinds.at(kind), values);
    if (!(error <= 2 * cpu_error)) report_failure(__FILE__, __LINE__, text(name, ": gradients of ", kind, " are off by ", error, ", the CPU's by ", cpu_error));
  }
}

}  // namespace

// Layers, ranks, alphas and modules of its own, from a fresh adapter on a base whose head is its token table.
OptionCase everything() {
  OptionCase c{family("gemma2"), options_of()};
  c.options.lora->layers = {1};
  c.options.lora->rank_pattern = {{"v_proj", 20}};
  c.options.lora->alpha_pattern = {{"o_proj", 3}};
  c.options.lora->modules_to_save = {"embed_tokens", "lm_head"};
  c.options.lora->dora = true;
  return c;
}

TEST("gradients with every option of adapters are as close to exact ones as the CPU's bf16 mode is") {
  for (const auto& [name, dropout, quantize] : kOptions) check_gradients(name, option_case(name, dropout), quantize);
}

TEST("a saved adapter scores as it is evaluated, and scoring another changes nothing of what is trained") {
  OptionCase c = everything();
  c.options.schedule = {ScheduleKind::constant, 0, 20, 2e-3};
  const auto model = load(c.base);
  const std::vector<PackedRows> micros = two_micros(c.base);
  const auto device = device_trainer(model, c.options);
  const std::vector<std::vector<std::uint32_t>> sequences{c.base.sequences[0], c.base.sequences[1]};
  const TempDir dir;
  device->save(dir / "fresh", "");
  device->train_step(views(micros));
  device->save(dir / "trained", "");
  const std::vector<float> values = values_of(*device);
  const auto fresh = device->score_adapter(dir / "fresh", sequences), trained = device->score_adapter(dir / "trained", sequences);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    PackedRows row;
    row.add(sequences[i], 0);
    double sum = 0;
    for (const float score : trained[i]) sum += score;
    CHECK_EQ(trained[i].size(), sequences[i].size() - 1);
    CHECK_CLOSE(-sum / static_cast<double>(trained[i].size()), device->evaluate(views({row})).loss, 1e-6);
    const LoraAdapter adapter = model->load_adapter(dir / "fresh");
    CHECK_CLOSE(relative_error(fresh[i], model->score(sequences[i], &adapter, nullptr)), 0, 1e-2);
  }
  CHECK(fresh != trained);
  CHECK(values_of(*device) == values);
  CHECK_THROWS(invalid, device->score_adapter(dir / "trained", std::vector<std::vector<std::uint32_t>>{{1}}));
  const LoraConfig other{2, 2, 0, false, {"q_proj"}, ""};
  write_random_adapter(model->spec(), other, dir / "other");
  CHECK_THROWS(invalid, device->score_adapter(dir / "other", sequences));
  CHECK(values_of(*device) == values);
}

TEST("an adapter with every option begins as on the CPU, goes the CPU's way, and continues from a checkpoint bit for bit") {
  const OptionCase c = everything();
  const auto model = load(c.base);
  const std::vector<PackedRows> micros = two_micros(c.base);
  Trainer cpu(model, c.options);
  const auto device = device_trainer(model, c.options), continued = device_trainer(model, c.options);
  CHECK(relative_error(values_of(*device), values_of(cpu)) <= 1e-7);
  const TempDir dir;
  for (int i = 0; i < 4; ++i) {
    if (i == 2) device->save_checkpoint(dir / "checkpoint");
    const double expected = cpu.train_step(views(micros)).loss, loss = device->train_step(views(micros)).loss;
    if (!(std::abs(loss - expected) <= 5e-3 * expected)) report_failure(__FILE__, __LINE__, text("step ", i, ": loss ", loss, ", on the CPU ", expected));
  }
  continued->restore_checkpoint(dir / "checkpoint");
  for (int i = 2; i < 4; ++i) continued->train_step(views(micros));
  CHECK(values_of(*continued) == values_of(*device));
  CHECK_EQ(continued->evaluate(views(micros)).loss, device->evaluate(views(micros)).loss);
  Trainer again(model, c.options);
  device->save_checkpoint(dir / "device");
  again.restore_checkpoint(dir / "device");
  CHECK(values_of(again) == values_of(*device));
}

#ifdef ENGINE_CUDA_EMULATED
TEST("a run with every option of adapters allocates what its plan says") {
  for (const bool tied : {true, false}) {
    OptionCase c = everything();
    if (!tied) {  // a base's table beside a head that is trained
      c.base = family("llama3");
      c.options.lora->modules_to_save = {"lm_head"};
    }
    const auto model = load(c.base);
    const std::int64_t before = emulation::allocated_bytes();
    emulation::reset_peak();
    const auto trainer = device_trainer(model, c.options);
    trainer->train_step(views(two_micros(c.base)));
    const std::int64_t unused = Gemm().library() == "mma" ? 2 * Gemm::workspace_bytes() : 0;
    CHECK_EQ(emulation::peak_bytes() - before + unused, trainer->plan()->device_bytes);
  }
}
#endif
