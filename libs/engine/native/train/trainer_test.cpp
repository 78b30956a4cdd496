#include "train/trainer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>

#include "core/test.h"
#include "model/golden_case.h"
#include "train/memory_plan.h"

using namespace engine;
using namespace engine::test;

namespace {

struct PackedRows {
  std::vector<std::uint32_t> ids, offsets{0};
  std::vector<std::uint8_t> mask;
  void add(const std::vector<std::uint32_t>& tokens, std::size_t masked) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      ids.push_back(tokens[i]);
      mask.push_back(i >= masked ? 1 : 0);
    }
    offsets.push_back(static_cast<std::uint32_t>(ids.size()));
  }
  MicroBatch view() const { return {ids, mask, offsets}; }
};

TrainerOptions options_of(bool lora, OptimizerKind kind = OptimizerKind::adamw) {
  TrainerOptions options;
  if (lora) options.lora = LoraConfig{16, 16, 0.1, false, known_target_modules(), ""};
  options.optimizer.kind = kind;
  options.optimizer.weight_decay = 0.01;
  options.schedule = {ScheduleKind::linear, 2, 20, 2e-3};
  options.seed = 3407;
  options.neftune_alpha = 5;
  return options;
}

// Every method with a state of its own to carry: plain LoRA, its options, all weights.
std::vector<TrainerOptions> methods(OptimizerKind kind = OptimizerKind::adamw) {
  std::vector<TrainerOptions> all{options_of(true, kind), options_of(true, kind), options_of(true, kind), options_of(true, kind), options_of(false, kind)};
  all[1].lora->dora = true;
  all[2].lora->modules_to_save = {"embed_tokens", "lm_head"};
  LoraConfig& mixed = *all[3].lora;
  mixed.dora = mixed.rslora = true;
  mixed.modules_to_save = {"lm_head"};
  mixed.layers = {1};
  return all;
}

std::shared_ptr<Model> load(const GoldenCase& c, Compute compute = Compute::f32, QuantizeOnLoad quantize = QuantizeOnLoad::none) {
  return std::make_shared<Model>(c.dir, LoadOptions{quantize, compute, 2});
}

std::vector<float> saved_values(const Trainer& trainer) {
  const TempDir dir;
  trainer.save(dir / "out", "");
  std::vector<float> values;
  const bool adapter = std::filesystem::exists(dir / "out/adapter_model.safetensors");
  const SafetensorsFile file(dir / (adapter ? "out/adapter_model.safetensors" : "out/model.safetensors"));
  for (const TensorView& tensor : file.tensors()) {
    const std::vector<float> part = read_tensor(file, tensor.name);
    values.insert(values.end(), part.begin(), part.end());
  }
  return values;
}

std::vector<std::string> sorted(std::vector<std::string> names) {
  std::ranges::sort(names);
  return names;
}

GoldenCase family(const std::string& name) {
  for (GoldenCase& c : family_goldens())
    if (c.name == name) return std::move(c);
  throw Error(Code::internal, "no golden " + name);
}

std::array<PackedRows, 2> two_micros(const GoldenCase& c) {
  std::array<PackedRows, 2> micros;
  micros[0].add(c.sequences[0], 4);
  micros[1].add(c.sequences[1], 2);
  micros[1].add(c.sequences[2], 4);
  return micros;
}

}  // namespace

TEST("five QLoRA steps on the NF4 base reproduce the reference: losses, gradient norms, first gradients and final adapter") {
  for (const GoldenCase& c : shared_goldens()) {
    TrainerOptions options;
    const LoraConfig stored = PeftAdapter(c.dir / "adapter_init").config();
    options.lora = stored;
    options.initial_adapter_dir = c.dir / "adapter_init";
    options.optimizer.weight_decay = 0.01;
    options.schedule = {ScheduleKind::constant, 0, 5, 1e-3};
    Trainer trainer(load(c, Compute::f32, QuantizeOnLoad::nf4), options);
    PackedRows rows;
    for (const auto& sequence : c.sequences) rows.add(sequence, 6);
    const std::array micros{rows.view()};
    for (std::size_t step = 0; step < 5; ++step) {
      const StepResult result = trainer.train_step(micros);
      const double loss = c.reference.at("qlora_losses_5_adamw_steps_clip1.0").at(step).get<double>(), norm = c.reference.at("qlora_grad_norms").at(step).get<double>();
      if (!(std::abs(result.loss - loss) <= (step == 0 ? 1e-6 : 1e-4) * loss))
        report_failure(__FILE__, __LINE__, text(c.name, " step ", step, ": loss ", result.loss, " is not ", loss));
      if (!(std::abs(result.grad_norm - norm) <= 1e-4 * norm))
        report_failure(__FILE__, __LINE__, text(c.name, " step ", step, ": gradient norm ", result.grad_norm, " is not ", norm));
      if (step > 0) continue;
      const TempDir dir;
      trainer.save_gradients(dir / "gradients.safetensors");
      const SafetensorsFile ours(dir / "gradients.safetensors"), reference(c.dir / "lora_grads_step0.safetensors");
      CHECK_EQ(ours.tensors().size(), reference.tensors().size());
      for (const TensorView& tensor : reference.tensors()) {
        const double error = relative_error(read_tensor(ours, "base_model.model." + tensor.name), read_tensor(reference, tensor.name));
        if (!(error <= 1e-4)) report_failure(__FILE__, __LINE__, text(c.name, ": gradient of ", tensor.name, " differs by ", error));
      }
    }
    const TempDir dir;
    trainer.save(dir / "adapter", "");
    const SafetensorsFile ours(dir / "adapter/adapter_model.safetensors"), reference(c.dir / "adapter_after5/adapter_model.safetensors");
    CHECK_EQ(ours.tensors().size(), reference.tensors().size());
    for (const TensorView& tensor : reference.tensors()) {
      const double error = relative_error(read_tensor(ours, tensor.name), read_tensor(reference, tensor.name));
      if (!(error <= 1e-4)) report_failure(__FILE__, __LINE__, text(c.name, ": ", tensor.name, " after 5 steps differs by ", error));
    }
    CHECK(sorted(PeftAdapter(dir / "adapter").config().target_modules) == sorted(stored.target_modules));
  }
}

TEST("loss of the shared golden models equals the reference to 1e-6") {
  for (const GoldenCase& c : shared_goldens()) {
    PackedRows rows;
    for (const auto& sequence : c.sequences) rows.add(sequence, 6);
    const std::array micros{rows.view()};
    TrainerOptions options = options_of(true);
    for (const bool nf4 : {false, true}) {
      Trainer trainer(load(c, Compute::f32, nf4 ? QuantizeOnLoad::nf4 : QuantizeOnLoad::none), options);  // B is zero, so the adapter does nothing yet
      const double expected = c.reference.at(nf4 ? "sft_loss_nf4dq" : "sft_loss_masked_first6_right_padded").get<double>();
      CHECK_CLOSE(trainer.evaluate(micros).loss, expected, 1e-6 * expected);
    }
  }
}

TEST("one batch and the same rows accumulated over micro-batches take the same step") {
  const GoldenCase c = family("qwen3");
  for (TrainerOptions options : methods()) {
    if (options.lora) options.lora->dropout = 0;
    options.neftune_alpha = 0;
    options.schedule.warmup_steps = 0;
    Trainer one(load(c), options), many(load(c), options);
    PackedRows all;
    std::array<PackedRows, 3> each;
    for (std::size_t i = 0; i < 3; ++i) {
      all.add(c.sequences[i], 4);
      each[i].add(c.sequences[i], 4);
    }
    const std::array whole{all.view()};
    const std::array parts{each[0].view(), each[1].view(), each[2].view()};
    const StepResult a = one.train_step(whole), b = many.train_step(parts);
    CHECK_EQ(a.trainable_tokens, b.trainable_tokens);
    CHECK_EQ(a.tokens, b.tokens);
    CHECK_CLOSE(a.loss, b.loss, 1e-6 * a.loss);
    CHECK_CLOSE(a.grad_norm, b.grad_norm, 2e-6 * a.grad_norm);
    const TempDir dir;
    one.save_gradients(dir / "one.safetensors");
    many.save_gradients(dir / "many.safetensors");
    const SafetensorsFile ga(dir / "one.safetensors"), gb(dir / "many.safetensors");
    for (const TensorView& tensor : ga.tensors()) {
      const double error = relative_error(read_tensor(gb, tensor.name), read_tensor(ga, tensor.name));
      if (!(error <= 1e-5)) report_failure(__FILE__, __LINE__, text(tensor.name, " differs by ", error));
    }
  }
}

TEST("saving at step 3 and resuming gives the bits of an uninterrupted run, with every method and both optimizers") {
  const GoldenCase c = family("llama3");
  const std::array<PackedRows, 2> rows = two_micros(c);
  const std::array micros{rows[0].view(), rows[1].view()};
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adamw_8bit})
    for (const TrainerOptions& options : methods(kind))
      for (const Compute compute : {Compute::f32, Compute::bf16}) {
        const TempDir dir;
        const auto model = load(c, compute);
        Trainer straight(model, options), first(model, options), second(model, options);
        for (int i = 0; i < 3; ++i) {
          straight.train_step(micros);
          first.train_step(micros);
        }
        first.save_checkpoint(dir / "checkpoint");
        second.train_step(micros);  // a used trainer must forget its own past
        second.restore_checkpoint(dir / "checkpoint");
        CHECK_EQ(second.step(), 3);
        for (int i = 0; i < 3; ++i) {
          const StepResult a = straight.train_step(micros), b = second.train_step(micros);
          CHECK_EQ(a.step, b.step);
          CHECK_EQ(a.loss, b.loss);
          CHECK_EQ(a.grad_norm, b.grad_norm);
          CHECK_EQ(a.learning_rate, b.learning_rate);
        }
        CHECK(saved_values(straight) == saved_values(second));
      }
}

TEST("whether activations are kept changes no bit of a run, with every method") {
  const GoldenCase c = family("gemma2");
  const std::array<PackedRows, 2> rows = two_micros(c);
  const std::array micros{rows[0].view(), rows[1].view()};
  for (TrainerOptions options : methods(OptimizerKind::adamw_8bit)) {
    const auto model = load(c, Compute::bf16);
    Trainer bounded(model, options);
    options.gradient_checkpointing = false;
    Trainer keeping(model, options);
    for (int i = 0; i < 3; ++i) CHECK_EQ(bounded.train_step(micros).loss, keeping.train_step(micros).loss);
    CHECK(saved_values(bounded) == saved_values(keeping));
  }
}

TEST("a fresh adapter of any kind leaves the base's answers as they are") {
  const GoldenCase c = family("qwen3");
  const auto model = load(c, Compute::f32, QuantizeOnLoad::nf4);
  const PackedRows rows = [&] {
    PackedRows all;
    all.add(c.sequences[0], 4);
    return all;
  }();
  const std::array micros{rows.view()};
  std::vector<double> losses;
  for (const TrainerOptions& options : methods())
    if (options.lora) losses.push_back(Trainer(model, options).evaluate(micros).loss);
  for (const double loss : losses) CHECK_CLOSE(loss, losses[0], 1e-6 * losses[0]);
}

TEST("a run holds exactly the bytes that were planned for it, and keeps to its memory budget without changing a bit") {
  const GoldenCase c = family("gemma2");
  PackedRows row;
  row.add(c.sequences[0], 0);
  const std::array micros{row.view()};
  const auto tokens = static_cast<std::int64_t>(c.sequences[0].size());
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adamw_8bit})
    for (TrainerOptions options : methods(kind)) {
      const auto held = [&](Trainer& trainer, const Model& model) {
        const StepResult result = trainer.train_step(micros);
        return result.peak_bytes - model.exec().pool.workspace_bytes();
      };
      const auto model = load(c);
      const TrainingPlan free = plan_training(model->spec(), model->resident_bytes(), options, tokens);
      Trainer unbounded(model, options);
      CHECK_EQ(held(unbounded, *model), free.device_bytes);
      const TrainingPlan all_kept = unbounded.plan().value();
      CHECK_EQ(all_kept.device_bytes, free.device_bytes);
      CHECK_EQ(free.parts.total(), free.device_bytes);

      const std::int64_t one = free.parts.activations / free.kept_layers;
      options.memory_budget = free.device_bytes - (free.kept_layers - 1) * one;
      options.micro_batch_tokens = tokens;
      Trainer bounded(model, options);
      const TrainingPlan one_kept = bounded.plan().value();
      CHECK_EQ(one_kept.kept_layers, 1);
      CHECK_EQ(one_kept.recomputed_layers, free.kept_layers + free.recomputed_layers - 1);
      CHECK_EQ(held(bounded, *model), options.memory_budget);
      CHECK(saved_values(bounded) == saved_values(unbounded));

      --options.memory_budget;
      CHECK_THROWS(oom, Trainer(model, options));
      options.micro_batch_tokens = 0;  // unknown until the step, which then changes nothing
      Trainer surprised(model, options);
      CHECK_THROWS(oom, surprised.train_step(micros));
      CHECK_THROWS(oom, surprised.evaluate(micros));
      CHECK_EQ(surprised.step(), 0);
    }
}

TEST("the planned bytes of a base are those it takes when it is loaded, as stored and quantized on load") {
  for (const GoldenCase& c : family_goldens())
    for (const QuantizeOnLoad quantize : {QuantizeOnLoad::none, QuantizeOnLoad::nf4}) {
      const auto model = load(c, Compute::f32, quantize);
      CHECK_EQ(loaded_weight_bytes(model->spec(), HfFolder(c.dir), quantize), model->resident_bytes());
      const std::int64_t stored = load(c, Compute::f32, QuantizeOnLoad::none)->resident_bytes();
      CHECK(std::abs(loaded_weight_bytes(model->spec(), stored, quantize) - model->resident_bytes()) <= model->resident_bytes() / 100);
    }
}

TEST("an initial adapter of another shape is refused with what differs") {
  const GoldenCase c = family("llama3");
  const auto model = load(c);
  const TempDir dir;
  TrainerOptions dora = options_of(true);
  dora.lora->dora = true;
  Trainer(model, dora).save(dir / "dora", "");
  const auto refusal = [&](auto change) -> std::string {
    TrainerOptions options = dora;
    options.initial_adapter_dir = dir / "dora";
    change(*options.lora);
    try {
      Trainer trainer(model, options);
    } catch (const Error& error) {
      CHECK(error.code() == Code::invalid);
      return error.message();
    }
    return "accepted";
  };
  CHECK_EQ(refusal([](LoraConfig&) {}), "accepted");
  CHECK(refusal([](LoraConfig& l) { l.rank = 8; }).find("rank 16") != std::string::npos);
  CHECK(refusal([](LoraConfig& l) { l.dora = false; }).find("DoRA") != std::string::npos);
  CHECK(refusal([](LoraConfig& l) { l.modules_to_save = {"lm_head"}; }).find("modules to save") != std::string::npos);
  CHECK(refusal([](LoraConfig& l) { l.layers = {0}; }).find("layers") != std::string::npos);
  CHECK(refusal([](LoraConfig& l) { l.target_modules = {"q_proj"}; }).find("target modules") != std::string::npos);
  CHECK(refusal([](LoraConfig& l) { l.layers = {7}; }).find("layers 0 to 1") != std::string::npos);
}

TEST("training lowers the loss of the rows it sees, with both optimizers") {
  const GoldenCase c = family("qwen2_yarn");
  const std::array<PackedRows, 2> rows = two_micros(c);
  const std::array micros{rows[0].view(), rows[1].view()};
  for (const bool lora : {true, false})
    for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adamw_8bit}) {
      TrainerOptions options = options_of(lora, kind);
      options.schedule = {ScheduleKind::constant, 0, 100, 1e-2};
      options.neftune_alpha = 0;
      Trainer trainer(load(c, Compute::bf16), options);
      const double before = trainer.evaluate(micros).loss;
      for (int i = 0; i < 20; ++i) trainer.train_step(micros);
      const double after = trainer.evaluate(micros).loss;
      if (!(after < 0.5 * before)) report_failure(__FILE__, __LINE__, text("loss went from ", before, " to ", after));
    }
}

TEST("a checkpoint of another run is refused with the setting that differs, and the trainer goes on as before") {
  const GoldenCase c = family("llama3");
  const std::array<PackedRows, 2> rows = two_micros(c);
  const std::array micros{rows[0].view(), rows[1].view()};
  const TempDir dir;
  Trainer saved(load(c), options_of(true));
  saved.train_step(micros);
  saved.save_checkpoint(dir / "checkpoint");
  const auto refusal = [&](const TrainerOptions& options, const GoldenCase& other) -> std::string {
    Trainer trainer(load(other), options);
    const std::vector<float> before = saved_values(trainer);
    try {
      trainer.restore_checkpoint(dir / "checkpoint");
    } catch (const Error& error) {
      CHECK(before == saved_values(trainer));
      CHECK_EQ(trainer.step(), 0);
      return error.message();
    }
    return "accepted";
  };
  TrainerOptions options = options_of(true);
  CHECK_EQ(refusal(options, c), "accepted");
  options.lora->rank = 8;
  CHECK(refusal(options, c).find("method.rank = 16") != std::string::npos);
  options = options_of(true);
  options.seed = 1;
  CHECK(refusal(options, c).find("rng.seed") != std::string::npos);
  CHECK(refusal(options_of(true, OptimizerKind::adamw_8bit), c).find("optimizer.kind") != std::string::npos);
  CHECK(refusal(options_of(false), c).find("method.kind") != std::string::npos);
  CHECK(refusal(options_of(true), family("qwen3")).find("model.") != std::string::npos);
  {
    Trainer trainer(load(c), options_of(true));
    CHECK_THROWS(io, trainer.restore_checkpoint(dir / "nothing"));
    std::filesystem::resize_file(dir / "checkpoint/optimizer.safetensors", 100);
    CHECK_THROWS(corrupt, trainer.restore_checkpoint(dir / "checkpoint"));
    CHECK_EQ(trainer.step(), 0);
  }
}

TEST("a cancelled step leaves weights, optimizer and step as they were") {
  const GoldenCase c = family("llama3");
  const std::array<PackedRows, 2> rows = two_micros(c);
  const std::array micros{rows[0].view(), rows[1].view()};
  const auto model = load(c);
  Trainer disturbed(model, options_of(true)), calm(model, options_of(true));
  disturbed.train_step(micros);
  calm.train_step(micros);
  CancelFlag cancel;
  cancel.requested = true;
  CHECK_THROWS(cancelled, disturbed.train_step(micros, &cancel));
  CHECK_THROWS(cancelled, disturbed.evaluate(micros, &cancel));
  CHECK_THROWS(invalid, disturbed.save_gradients("unused.safetensors"));
  CHECK_EQ(disturbed.step(), 1);
  for (int i = 0; i < 2; ++i) CHECK_EQ(disturbed.train_step(micros).loss, calm.train_step(micros).loss);
  CHECK(saved_values(disturbed) == saved_values(calm));
}

TEST("a gradient that is not finite skips the step and changes no weight") {
  const GoldenCase c = family("llama3");
  const TempDir dir;
  std::filesystem::create_directory(dir / "broken");
  std::filesystem::copy_file(c.dir / "config.json", dir / "broken/config.json");
  // The same model with an infinite weight in the last layer.
  const SafetensorsFile source(c.dir / "model.safetensors");
  std::vector<std::vector<std::uint8_t>> copies;
  std::vector<NamedTensor> tensors;
  for (const TensorView& tensor : source.tensors()) {
    copies.emplace_back(tensor.data, tensor.data + tensor.bytes);
    if (tensor.name == "model.layers.1.mlp.down_proj.weight") std::memcpy(copies.back().data(), "\x80\x7f", 2);
  }
  for (std::size_t i = 0; i < copies.size(); ++i)
    tensors.push_back({{source.tensors()[i].name, source.tensors()[i].dtype, source.tensors()[i].shape}, copies[i].data()});
  write_safetensors(dir / "broken/model.safetensors", tensors, {});
  Trainer trainer(std::make_shared<Model>(dir / "broken", LoadOptions{.compute = Compute::f32, .threads = 1}), options_of(true));
  const std::vector<float> before = saved_values(trainer);
  const std::array<PackedRows, 2> rows = two_micros(c);
  const std::array micros{rows[0].view(), rows[1].view()};
  for (int i = 0; i < 4; ++i) CHECK(trainer.train_step(micros).skipped);
  CHECK_EQ(trainer.step(), 4);
  CHECK(before == saved_values(trainer));
}

TEST("malformed batches are refused with what is wrong") {
  const GoldenCase c = family("llama3");
  Trainer trainer(load(c), options_of(true));
  const std::vector<std::uint32_t> ids{5, 6, 7, 8}, offsets{0, 4};
  const std::vector<std::uint8_t> mask{0, 0, 1, 1};
  const auto step = [&](std::vector<std::uint32_t> i, std::vector<std::uint8_t> m, std::vector<std::uint32_t> o) {
    const std::array micros{MicroBatch{i, m, o}};
    trainer.train_step(micros);
  };
  step(ids, mask, offsets);
  CHECK_THROWS(invalid, step(ids, {0, 0, 1}, offsets));
  CHECK_THROWS(invalid, step(ids, mask, {0, 3}));
  CHECK_THROWS(invalid, step(ids, mask, {0, 2, 2, 4}));
  CHECK_THROWS(invalid, step(ids, mask, {1, 4}));
  CHECK_THROWS(invalid, step({5, 6, 7, 96}, mask, offsets));
  CHECK_THROWS(invalid, step(ids, {0, 0, 2, 1}, offsets));
  CHECK_THROWS(invalid, step(ids, {1, 0, 0, 0}, offsets));  // a row's first token has nothing before it to predict it from
  CHECK_THROWS(invalid, step({}, {}, {0}));
  CHECK_THROWS(invalid, trainer.train_step({}));
  CHECK_EQ(trainer.step(), 1);
  TrainerOptions options = options_of(true);
  options.lora->rank = 0;
  CHECK_THROWS(invalid, Trainer(load(c), options));
  options = options_of(true);
  options.lora->target_modules = {"lm_head"};
  CHECK_THROWS(invalid, Trainer(load(c), options));
}

TEST("a saved adapter scores as the trainer's own, and saved full weights are a model folder that loads") {
  const GoldenCase c = family("qwen3");
  const std::array<PackedRows, 2> rows = two_micros(c);
  const std::array micros{rows[0].view(), rows[1].view()};
  for (const bool lora : {true, false}) {
    const TempDir dir;
    const auto model = load(c);
    Trainer trainer(model, options_of(lora));
    for (int i = 0; i < 3; ++i) trainer.train_step(micros);
    trainer.save(dir / "saved", "demo/base");
    if (lora) {
      const LoraAdapter adapter = LoraAdapter::read(model->spec(), dir / "saved");
      CHECK_EQ(adapter.config().base_model_name, "demo/base");
      const std::vector<float> base = model->score(c.sequences[0], nullptr, nullptr), tuned = model->score(c.sequences[0], &adapter, nullptr);
      CHECK(base != tuned);
    } else {
      Model saved(dir / "saved", {.compute = Compute::f32, .threads = 1});
      CHECK(saved.info().stored_dtype == Dtype::bf16);
      CHECK(saved.score(c.sequences[0], nullptr, nullptr) != model->score(c.sequences[0], nullptr, nullptr));
    }
  }
}

TEST("full-parameter training of an NF4 base is refused") {
  CHECK_THROWS(unsupported, Trainer(load(family("llama3"), Compute::f32, QuantizeOnLoad::nf4), options_of(false)));
}
