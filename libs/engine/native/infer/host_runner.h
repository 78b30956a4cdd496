// host_runner.h: generation on the CPU.   A row's results are the same bits whatever runs beside it and however its prompt is divided, when products sum
//   in one order for any number of rows, since attention takes every row by itself.
#pragma once

#include <vector>

#include "infer/host_kv_memory.h"
#include "infer/runner.h"
#include "model/arena.h"
#include "model/forward.h"
#include "model/model.h"

namespace engine {

class HostRunner final : public Runner {
 public:
  // `kv_bytes`: of the key/value blocks. Throws oom.
  HostRunner(std::shared_ptr<Model> model, SumOrder order, std::int64_t kv_bytes);

  const ModelSpec& spec() const noexcept override { return model_->spec(); }
  KvMemory& memory() noexcept override { return memory_; }
  std::string device() const override;
  void check_adapter(const LoraAdapter&) const override {}
  bool chooses(const Sampling&) const noexcept override { return false; }
  std::unique_ptr<Model::Turn> turn() override { return std::make_unique<Model::Turn>(*model_); }
  StepOutput run(const Step& step) override;
  void losses(Rows logits, std::span<const std::uint32_t> tokens, std::span<float> losses) override;

 private:
  std::shared_ptr<Model> model_;
  Exec exec_;  // the model's, with this runner's order of summation
  HostKvMemory memory_;
  Arena arena_;
  RopeCache ropes_;
  // The logits of the rows that want this, in the arena.
  Rows logits_of(const Pass& pass, const Step& step, Rows hidden, Want want);
  // The normed states of the rows that want these, in the arena.
  Rows normed_of(const Pass& pass, const Step& step, Rows hidden);

  // Vectors keep their memory from step to step.
  std::vector<LoraSegment> segments_, wanted_segments_;  // of all rows, of the rows wanted
  std::vector<float> ones_, losses_;
  std::vector<std::uint32_t> targets_;
  std::vector<ChosenToken> scores_;
};

}  // namespace engine
