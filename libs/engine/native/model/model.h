// model.h: a loaded base model, shared by the trainers, generators and scorers that run it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "core/cancel.h"
#include "core/exec.h"
#include "core/thread_pool.h"
#include "model/lora.h"
#include "model/spec.h"
#include "model/weights.h"

namespace engine {

struct ModelInfo {
  std::string architecture, model_type;
  std::int64_t layers = 0, hidden_size = 0, vocab_size = 0, parameter_count = 0, context_length = 0;
  bool tied = false;
  Dtype stored_dtype = Dtype::f32;  // of the embedding table
  bool nf4 = false, double_quant = false;
  std::int64_t weight_bytes = 0;
  std::vector<std::string> target_modules;  // that an adapter may name
};

// Judges a Hugging Face folder without loading it. Throws as ModelWeights does when config.json and the tensors do not fit.
ModelInfo inspect_model(const std::filesystem::path& dir);

struct LoadOptions {
  QuantizeOnLoad quantize = QuantizeOnLoad::none;
  Compute compute = Compute::bf16;
  int threads = 0;  // 0: as many as this process may use
  const CancelFlag* cancel = nullptr;  // of the loading
};

class Model {
 public:
  // Throws io, corrupt, unsupported, oom, cancelled.
  Model(const std::filesystem::path& dir, const LoadOptions& options);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelSpec& spec() const noexcept { return spec_; }
  const DecoderWeights& weights() const noexcept { return weights_->view(); }
  const ModelInfo& info() const noexcept { return info_; }
  const std::filesystem::path& dir() const noexcept { return dir_; }
  std::int64_t resident_bytes() const noexcept { return weights_->bytes(); }
  const Exec& exec() const noexcept { return exec_; }

  // The pool runs one operation at a time, so whoever computes holds a Turn, for one unit of work (a micro-batch, a generation step). Turns are
  // granted in the order they were asked for: a trainer and several generators share the machine fairly.
  class Turn {
   public:
    explicit Turn(Model& model);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    Model& model_;
  };

  // A PEFT folder, ready to run on this base. Throws as LoraAdapter::read does.
  LoraAdapter load_adapter(const std::filesystem::path& dir);

  // log p(ids[i + 1] | ids[0 … i]) from the unmodified distribution, [T − 1]. `adapter` may be null. Throws invalid for fewer than two tokens.
  std::vector<float> score(std::span<const std::uint32_t> ids, const LoraAdapter* adapter, const CancelFlag* cancel);
  // All logits, [T, vocab] row by row.
  std::vector<float> logits(std::span<const std::uint32_t> ids, const LoraAdapter* adapter, const CancelFlag* cancel);

 private:
  std::filesystem::path dir_;
  ModelSpec spec_;
  ThreadPool pool_;
  Exec exec_;
  std::unique_ptr<ModelWeights> weights_;
  ModelInfo info_;

  std::mutex turns_mutex_;
  std::condition_variable turn_changed_;
  std::uint64_t next_ticket_ = 0, serving_ = 0;
};

}  // namespace engine
