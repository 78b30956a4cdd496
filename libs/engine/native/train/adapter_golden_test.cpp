// Adapters of every family and with every option, judged by PEFT (golden/make_adapter_golden.py).
#include <algorithm>
#include <array>
#include <cmath>

#include "core/test.h"
#include "formats/merge_adapter.h"
#include "model/golden_case.h"
#include "train/backend.h"
#include "train/trainer.h"

using namespace engine;
using namespace engine::test;

namespace {

struct AdapterGolden {
  std::string name;
  std::filesystem::path dir, adapter;
  Json reference;
  GoldenCase base;
};

const std::vector<std::string>& option_names() {
  static const std::vector<std::string> kNames = {"dora", "dora_some", "rslora", "layers", "patterns", "regex_patterns", "whole_untied", "whole_tied", "head_tied", "embedding_tied", "everything"};
  return kNames;
}

// All families with plain LoRA, then the options on one of them each.
std::vector<AdapterGolden> adapter_goldens() {
  const std::vector<GoldenCase> families = family_goldens();
  std::vector<std::string> names;
  for (const GoldenCase& family : families) names.push_back(family.name);
  names.insert(names.end(), option_names().begin(), option_names().end());
  std::vector<AdapterGolden> goldens;
  for (const std::string& name : names) {
    const std::filesystem::path dir = families.front().dir.parent_path() / "adapters" / name;
    AdapterGolden golden{name, dir, dir / "adapter", read_json(dir / "reference.json"), {}};
    golden.base = *std::ranges::find_if(families, [&](const GoldenCase& c) { return c.name == golden.reference.at("family"); });
    goldens.push_back(std::move(golden));
  }
  return goldens;
}

bool has_steps(const AdapterGolden& golden) { return golden.reference.contains("losses"); }

struct Rows4 {
  std::vector<std::uint32_t> ids, offsets{0};
  std::vector<std::uint8_t> mask;
  explicit Rows4(const std::vector<std::vector<std::uint32_t>>& sequences, std::size_t masked = 4) {
    for (const auto& sequence : sequences) {
      for (std::size_t i = 0; i < sequence.size(); ++i) {
        ids.push_back(sequence[i]);
        mask.push_back(i >= masked ? 1 : 0);
      }
      offsets.push_back(static_cast<std::uint32_t>(ids.size()));
    }
  }
  MicroBatch view() const { return {ids, mask, offsets}; }
};

TrainerOptions continue_from(const std::filesystem::path& adapter) {
  TrainerOptions options;
  options.lora = PeftAdapter(adapter).config();
  options.lora->dropout = 0;
  options.initial_adapter_dir = adapter;
  options.optimizer.weight_decay = 0.01;
  options.schedule = {ScheduleKind::constant, 0, 5, 1e-3};
  return options;
}

// The trained tensors or the gradients of a file, one after the other, in the order of `names`.
std::vector<float> joined(const SafetensorsFile& file, const std::vector<std::string>& names, const std::string& prefix = "") {
  std::vector<float> all;
  for (const std::string& name : names) {
    const std::vector<float> part = read_tensor(file, prefix + name);
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

std::vector<std::string> tensor_names(const SafetensorsFile& file) {
  std::vector<std::string> names;
  for (const TensorView& tensor : file.tensors()) names.push_back(tensor.name);
  return names;
}

}  // namespace

TEST("logits with an adapter equal PEFT's to 2e-5 of their scale, in every family and with every option") {
  for (const AdapterGolden& golden : adapter_goldens()) {
    Model model(golden.base.dir, {.compute = Compute::f32, .threads = 2});
    const LoraAdapter adapter = model.load_adapter(golden.adapter);
    const SafetensorsFile reference(golden.dir / "reference.safetensors");
    for (std::size_t i = 0; i < golden.base.sequences.size(); ++i) {
      const std::vector<float> logits = model.logits(golden.base.sequences[i], &adapter, nullptr);
      const double error = relative_to_scale(logits, read_tensor(reference, text("logits_", i)));
      if (!(error <= 2e-5)) report_failure(__FILE__, __LINE__, text(golden.name, ": sequence ", i, " differs by ", error));
    }
  }
}

TEST("losses, gradients, five steps and the adapter after them equal PEFT's, in every family and with every option") {
  for (const AdapterGolden& golden : adapter_goldens()) {
    Trainer trainer(std::make_shared<Model>(golden.base.dir, LoadOptions{.compute = Compute::f32, .threads = 2}), continue_from(golden.adapter));
    const Rows4 rows(golden.base.sequences);
    const std::array micros{rows.view()};
    const SafetensorsFile reference(golden.dir / "reference.safetensors");
    const TempDir dir;
    for (std::size_t step = 0; step < (has_steps(golden) ? 5u : 1u); ++step) {
      const StepResult result = trainer.train_step(micros);
      const double loss = (has_steps(golden) ? golden.reference.at("losses").at(step) : golden.reference.at("loss")).get<double>();
      if (!(std::abs(result.loss - loss) <= (step == 0 ? 1e-6 : 1e-4) * loss))
        report_failure(__FILE__, __LINE__, text(golden.name, " step ", step, ": loss ", result.loss, " is not ", loss));
      if (has_steps(golden)) {
        const double norm = golden.reference.at("grad_norms").at(step).get<double>();
        if (!(std::abs(result.grad_norm - norm) <= 1e-4 * norm))
          report_failure(__FILE__, __LINE__, text(golden.name, " step ", step, ": gradient norm ", result.grad_norm, " is not ", norm));
      }
      if (step == 0) trainer.save_gradients(dir / "gradients.safetensors");
    }
    trainer.save(dir / "adapter", "");
    const SafetensorsFile gradients(dir / "gradients.safetensors"), after(dir / "adapter/adapter_model.safetensors"), stored(golden.adapter / "adapter_model.safetensors");
    CHECK(tensor_names(gradients) == tensor_names(after));
    CHECK_EQ(gradients.tensors().size(), stored.tensors().size());
    for (const std::string& name : tensor_names(stored)) {
      const double error = relative_error(read_tensor(gradients, name), read_tensor(reference, "grad." + name));
      if (!(error <= 1e-4)) report_failure(__FILE__, __LINE__, text(golden.name, ": gradient of ", name, " differs by ", error));
      if (!has_steps(golden)) continue;
      const double moved = relative_error(read_tensor(after, name), read_tensor(reference, "after5." + name));
      if (!(moved <= 1e-4)) report_failure(__FILE__, __LINE__, text(golden.name, ": ", name, " after 5 steps differs by ", moved));
    }
  }
}

TEST("training goes on from an adapter with ranks and alphas by module when the options name only the common ones") {
  for (const AdapterGolden& golden : adapter_goldens()) {
    if (!golden.name.ends_with("patterns")) continue;
    TrainerOptions options = continue_from(golden.adapter), common = options;
    common.lora->rank_pattern.clear();
    common.lora->alpha_pattern.clear();
    const auto losses = [&](const TrainerOptions& wanted) {
      const auto model = std::make_shared<Model>(golden.base.dir, LoadOptions{.compute = Compute::f32, .threads = 1});
      const auto trainer = create_trainer(model, {}, wanted).trainer;
      const Rows4 rows(golden.base.sequences);
      const std::array micros{rows.view()};
      trainer->train_step(micros);
      return trainer->train_step(micros).loss;
    };
    CHECK_EQ(losses(common), losses(options));
    LoraConfig other = *options.lora;
    other.alpha_pattern = {{"q_proj", 1}};
    options.lora = other;
    CHECK_THROWS(invalid, losses(options));
  }
}

TEST("an adapter that PEFT saved is written back with the same tensors and the same meaning") {
  for (const AdapterGolden& golden : adapter_goldens()) {
    Model model(golden.base.dir, {.compute = Compute::f32, .threads = 1});
    const TempDir dir;
    LoraAdapter::read(model.spec(), golden.adapter).write(dir.path(), golden.base.name);
    const SafetensorsFile before(golden.adapter / "adapter_model.safetensors"), after(dir / "adapter_model.safetensors");
    CHECK_EQ(after.tensors().size(), before.tensors().size());
    for (const TensorView& tensor : before.tensors()) CHECK(read_tensor(before, tensor.name) == read_tensor(after, tensor.name));
    const Json theirs = read_json(golden.adapter / "adapter_config.json"), ours = read_json(dir / "adapter_config.json");
    for (const char* key : {"r", "lora_alpha", "use_dora", "use_rslora", "modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern", "bias", "peft_type"})
      if (!(ours.at(key) == theirs.at(key))) report_failure(__FILE__, __LINE__, text(golden.name, ": ", key, " is ", ours.at(key).dump(), ", PEFT's ", theirs.at(key).dump()));
  }
}

TEST("in bf16, logits and gradients with an adapter stay within twice the error of a plain bf16 computation") {
  for (const AdapterGolden& golden : adapter_goldens()) {
    const auto model = std::make_shared<Model>(golden.base.dir, LoadOptions{.compute = Compute::bf16, .threads = 2});
    const SafetensorsFile reference(golden.dir / "reference.safetensors");
    std::vector<float> logits, exact;
    const LoraAdapter adapter = model->load_adapter(golden.adapter);
    for (std::size_t i = 0; i < golden.base.sequences.size(); ++i) {
      const std::vector<float> ours = model->logits(golden.base.sequences[i], &adapter, nullptr), theirs = read_tensor(reference, text("logits_", i));
      logits.insert(logits.end(), ours.begin(), ours.end());
      exact.insert(exact.end(), theirs.begin(), theirs.end());
    }
    Trainer trainer(model, continue_from(golden.adapter));
    const Rows4 rows(golden.base.sequences);
    const std::array micros{rows.view()};
    trainer.train_step(micros);
    const TempDir dir;
    trainer.save_gradients(dir / "gradients.safetensors");
    const SafetensorsFile gradients(dir / "gradients.safetensors");
    const std::vector<std::string> names = tensor_names(gradients);
    const double logits_error = relative_error(logits, exact), gradient_error = relative_error(joined(gradients, names), joined(reference, names, "grad."));
    const double plain_logits = golden.reference.at("bf16_logits_error").get<double>(), plain_gradient = golden.reference.at("bf16_gradient_error").get<double>();
    if (!(logits_error <= 2 * plain_logits)) report_failure(__FILE__, __LINE__, text(golden.name, ": logits off by ", logits_error, ", plainly by ", plain_logits));
    if (!(gradient_error <= 2 * plain_gradient))
      report_failure(__FILE__, __LINE__, text(golden.name, ": gradients off by ", gradient_error, ", plainly by ", plain_gradient));
  }
}

TEST("in bf16, logits and gradients of the shared golden models stay within twice the error of a plain bf16 computation") {
  const Json plain = read_json(std::filesystem::path(ENGINE_REPOSITORY_DIR) / "libs/engine/golden/shared_bf16.json");
  for (const GoldenCase& c : shared_goldens()) {
    const auto run = [&](Compute compute) {
      const auto model = std::make_shared<Model>(c.dir, LoadOptions{.compute = compute, .threads = 2});
      const LoraAdapter adapter = model->load_adapter(c.dir / "adapter_init");
      std::pair<std::vector<float>, std::vector<float>> result;
      for (const auto& sequence : c.sequences) {
        const std::vector<float> logits = model->logits(sequence, &adapter, nullptr);
        result.first.insert(result.first.end(), logits.begin(), logits.end());
      }
      Trainer trainer(model, continue_from(c.dir / "adapter_init"));
      const Rows4 rows(c.sequences, 6);
      const std::array micros{rows.view()};
      trainer.train_step(micros);
      const TempDir dir;
      trainer.save_gradients(dir / "gradients.safetensors");
      const SafetensorsFile gradients(dir / "gradients.safetensors");
      result.second = joined(gradients, tensor_names(gradients));
      return result;
    };
    const auto exact = run(Compute::f32), half = run(Compute::bf16);
    CHECK(relative_error(half.first, exact.first) <= 2 * plain.at(c.name).at("bf16_logits_error").get<double>());
    CHECK(relative_error(half.second, exact.second) <= 2 * plain.at(c.name).at("bf16_gradient_error").get<double>());
  }
}

TEST("a merged model answers as the base with its adapter does, up to the rounding of its weights to the base's type") {
  for (const AdapterGolden& golden : adapter_goldens()) {
    const TempDir dir;
    Model base(golden.base.dir, {.compute = Compute::f32, .threads = 2});
    const MergedModel result = merge_adapter(base.exec(), golden.base.dir, golden.adapter, dir / "merged", {});
    Model merged(dir / "merged", {.compute = Compute::f32, .threads = 2});
    CHECK_EQ(result.weight_bytes, inspect_model(dir / "merged").weight_bytes);
    CHECK_EQ(merged.spec().tied, base.spec().tied && PeftAdapter(golden.adapter).config().modules_to_save.empty());
    const SafetensorsFile reference(golden.dir / "reference.safetensors");
    const std::vector<float> with_adapter = read_tensor(reference, "logits_0"), alone = base.logits(golden.base.sequences[0], nullptr, nullptr);
    const std::vector<float> ours = merged.logits(golden.base.sequences[0], nullptr, nullptr);
    // bf16 weights are 2^-9 apart at most; a forgotten tensor or factor would be as far off as the base itself.
    const double error = relative_error(ours, with_adapter), base_error = relative_error(alone, with_adapter);
    if (!(error <= 2 * golden.reference.at("bf16_logits_error").get<double>() && error <= 0.25 * base_error))
      report_failure(__FILE__, __LINE__, text(golden.name, ": merged off by ", error, ", the base by ", base_error));
  }
}
